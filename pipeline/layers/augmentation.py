"""Augmentation of training images, as functions of the noise. They are differentiable."""

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.core.noise import Noise


def flip(images: Tensor, noise: Noise, probability: float, name: str = "flip") -> Tensor:
    """Mirror each image, left to right, with ``probability``."""
    if probability == 0:
        return images
    return torch.where(noise.uniform(name, 1, 1, 1) < probability, images.flip(-1), images)


def jitter(images: Tensor, noise: Noise, shift: float, zoom: float = 0.0, name: str = "jitter") -> Tensor:
    """Shift each image at random by up to ``shift`` of its side, and scale its sides by 1 +- ``zoom``.

    Each axis is resampled by a matrix of linear-interpolation weights, out = V x H^T. This is differentiable
    and deterministic on every device (indexing is not). Pixels outside the image are zero.
    """
    if shift == 0 and zoom == 0:
        return images
    size = images.shape[-1]
    drawn = noise.uniform(name, 4) * 2 - 1  # (N, 4): shifts and zooms, vertical and horizontal
    vertical = _resampling(size, drawn[:, 0] * shift, drawn[:, 2] * zoom)
    horizontal = _resampling(size, drawn[:, 1] * shift, drawn[:, 3] * zoom)
    return torch.einsum("nab,ncbd,ned->ncae", vertical, images, horizontal)


def _resampling(size: int, shift: Tensor, zoom: Tensor) -> Tensor:
    pixels = torch.arange(size, device=shift.device, dtype=torch.float32)
    centre = (size - 1) / 2
    sources = (pixels - centre)[None] * (1 + zoom)[:, None] + centre + (shift * size)[:, None]  # (N, size)
    return (1 - (sources[:, :, None] - pixels[None, None]).abs()).clamp_min(0)  # (N, size, size)


def crop(images: Tensor, noise: Noise, pixels: int) -> Tensor:
    """Shift each image by up to ``pixels``, a whole number of them, either way.

    It is the random crop of an image that is padded by reflection.
    """
    if pixels == 0:
        return images
    size = images.shape[-1]
    reach = min(pixels, size - 1)
    shifts = noise.integers("crop", 2 * reach + 1, 2) - reach  # (N, 2)
    places = torch.arange(size, device=images.device)
    sources = (size - 1 - (size - 1 - (places + shifts[:, :, None]).abs()).abs()).abs()  # (N, 2, size)
    down, right = (sources[..., None] == places).to(images.dtype).unbind(1)  # as in jitter, no indexing
    return torch.einsum("nab,ncbd,ned->ncae", down, images, right)


def erase(images: Tensor, noise: Noise, probability: float) -> Tensor:
    """Paint a rectangle of each image in a random colour, with ``probability`` (Zhong et al. 2020).

    Its area is 2 to 33 % of the image, the ratio of its sides 0.3 to 3.3. It may reach beyond the image.
    """
    if probability == 0:
        return images
    drawn = noise.uniform("erase", 5)
    area, ratio = 0.02 + 0.31 * drawn[:, 3], 3.3 ** (2 * drawn[:, 4] - 1)
    sides = [side[:, None, None, None] for side in ((area * ratio).sqrt(), (area / ratio).sqrt())]
    chosen = (drawn[:, 0] < probability)[:, None, None, None]
    erased = box(images.shape[-1], drawn[:, 1:3], *sides) * chosen
    return torch.where(erased > 0, noise.uniform("erase colour", images.shape[1], 1, 1), images)


def box(size: int, centres: Tensor, heights: Tensor, widths: Tensor) -> Tensor:
    """Maps (N, 1, size, size) with 1 for the pixels in a rectangle and 0 for the others.

    ``centres`` (N, 2), down and right, ``heights`` and ``widths`` (N, 1, 1, 1) are fractions of the side.
    """
    pixels = (torch.arange(size, device=centres.device) + 0.5) / size
    down = (pixels[:, None] - centres[:, 0, None, None, None]).abs() < heights / 2
    right = (pixels - centres[:, 1, None, None, None]).abs() < widths / 2
    return (down & right).float()


def rotate(images: Tensor, noise: Noise, degrees: float) -> Tensor:
    """Rotate each image about its centre by a random angle of at most ``degrees``, either way."""
    if degrees == 0:
        return images
    return rotated(images, torch.deg2rad((noise.uniform("rotate") * 2 - 1) * degrees))


def rotated(images: Tensor, angles: Tensor) -> Tensor:
    """Images (N, C, H, W), rotated counter-clockwise by ``angles`` (N,), in radians.

    Pixels are interpolated linearly; those from outside the image are zero.
    """
    size = images.shape[-1]
    centres = (2 * torch.arange(size, device=images.device) + 1) / size - 1  # of pixels, from -1 to 1
    down, right = torch.meshgrid(centres, centres, indexing="ij")
    cos, sin = angles.cos()[:, None, None], angles.sin()[:, None, None]
    # Without a matrix product, whose rounding depends on the device.
    sources = torch.stack([cos * right - sin * down, sin * right + cos * down], dim=-1)
    return F.grid_sample(images, sources, align_corners=False)


def color_jitter(images: Tensor, noise: Noise, strength: float) -> Tensor:
    """Scale the brightness, contrast and saturation of each image by random factors in 1 +- ``strength``."""
    if strength == 0:
        return images
    factors = 1 + strength * (noise.uniform("color", 3, 1, 1, 1) * 2 - 1)
    brightness, contrast, saturation = factors.unbind(1)  # each (N, 1, 1, 1)
    images = images * brightness
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + contrast * (images - mean)
    grey = images.mean(1, keepdim=True)
    return (grey + saturation * (images - grey)).clamp(0, 1)
