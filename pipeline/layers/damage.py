"""Damage to images that a model learns to repair: noise, missing squares, a lower resolution.

Images are (N, C, H, W) in [0, 1]. A mask (N, 1, H, W) is 1 where a pixel is known and 0 where it is missing.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.core.noise import Noise

Restoration = Literal["denoise", "inpaint", "upscale"]
RESTORATIONS: tuple[Restoration, ...] = ("denoise", "inpaint", "upscale")
MISSING = 0.5  # the value of missing pixels


def add_noise(images: Tensor, deviation: float, noise: Noise) -> Tensor:
    """Images with Gaussian noise, clipped to [0, 1]."""
    return (images + deviation * noise.normal("damage", *images.shape[1:])).clamp(0, 1)


def square_mask(images: Tensor, position: Tensor) -> Tensor:
    """Masks of a square of half the side. ``position`` (N, 2) in [0, 1): from the top left corner on."""
    masks = []
    for axis, side in enumerate(images.shape[-2:]):
        length = side // 2 + side % 2
        start = (position[:, axis, None] * (side - length + 1)).floor()
        pixels = torch.arange(side, device=images.device)
        masks.append((pixels >= start) & (pixels < start + length))
    missing = masks[0][:, None, :, None] & masks[1][:, None, None, :]
    return (~missing).to(images.dtype)


def upper_half(images: Tensor) -> Tensor:
    """A mask (1, 1, H, W) of which the upper half is known."""
    mask = torch.zeros_like(images[:1, :1])
    mask[:, :, : images.shape[2] // 2] = 1
    return mask


def hide(images: Tensor, mask: Tensor) -> Tensor:
    """Images whose missing pixels are grey."""
    return images * mask + MISSING * (1 - mask)


def shrink(images: Tensor) -> Tensor:
    """Images of half the resolution, each of whose pixels fills four."""
    small = F.interpolate(images, size=half_side(images.shape[-1]), mode="area")
    return enlarge(small, images.shape[-1])


def enlarge(images: Tensor, side: int) -> Tensor:
    """Square images with ``side`` pixels, each a copy of the nearest one."""
    return F.interpolate(images, size=side, mode="nearest")


def half_side(side: int) -> int:
    """Half of ``side``, rounded up."""
    return (side + 1) // 2
