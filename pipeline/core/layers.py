"""Building blocks that several models use."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.noise import Noise

MIN_SIDE = 4  # pixels: feature maps are halved down to about this side
GROUP_CHANNELS = 8  # channels in a group of GroupNorm

Wrap = Callable[[nn.Module], nn.Module]


def sides(size: int) -> list[int]:
    """Sides of the feature maps, from the image's down to about four pixels.

    Each is half the last, rounded up.
    """
    result = [size]
    while result[-1] > MIN_SIDE:
        result.append((result[-1] + 1) // 2)
    return result


def channels(width: int, levels: int) -> list[int]:
    """Channels after each halving: ``width``, doubled each time, at most four times ``width``."""
    return [width * min(4, 2**level) for level in range(levels)]


def group_norm(count: int) -> nn.Module:
    """Group normalisation (Wu & He 2018) in groups of eight channels. It uses no batch statistics."""
    return nn.GroupNorm(max(1, count // GROUP_CHANNELS), count)


class Encoder(nn.Module):
    """Images (N, C, H, W) in [0, 1] -> vectors (N, outputs), by strided convolutions.

    ``wrap`` is applied to each layer with weights (spectral normalisation); ``normalise`` adds group
    normalisation.
    """

    def __init__(
        self,
        image_channels: int,
        size: int,
        width: int,
        outputs: int,
        normalise: bool = True,
        wrap: Wrap = lambda layer: layer,
    ) -> None:
        super().__init__()
        levels = channels(width, len(sides(size)) - 1)
        layers: list[nn.Module] = [wrap(nn.Conv2d(image_channels, width, 3, padding=1)), nn.LeakyReLU(0.2)]
        before = width
        for count in levels:
            layers += [wrap(nn.Conv2d(before, count, 4 if size % 2 == 0 else 3, stride=2, padding=1))]
            layers += [group_norm(count)] if normalise else []
            layers += [nn.LeakyReLU(0.2)]
            before, size = count, (size + 1) // 2
        self.convolutions = nn.Sequential(*layers)
        self.output = wrap(nn.Linear(before * size * size, outputs))

    def forward(self, images: Tensor) -> Tensor:
        return self.output(self.convolutions(images * 2 - 1).flatten(1))


class Decoder(nn.Module):
    """Vectors (N, inputs) -> image logits (N, C, H, W).

    Nearest-neighbour upsampling followed by convolutions (Odena et al. 2016).
    """

    def __init__(self, inputs: int, image_channels: int, size: int, width: int) -> None:
        super().__init__()
        self.sides = sides(size)[::-1]
        counts = [*channels(width, len(self.sides) - 1)[::-1], width]
        self.input = nn.Linear(inputs, counts[0] * self.sides[0] ** 2)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, padding=1), group_norm(after), nn.ReLU())
            for before, after in itertools.pairwise(counts)
        )
        self.output = nn.Conv2d(width, image_channels, 3, padding=1)

    def forward(self, codes: Tensor) -> Tensor:
        maps = F.relu(self.input(codes)).unflatten(1, (-1, self.sides[0], self.sides[0]))
        for stage, side in zip(self.stages, self.sides[1:], strict=True):
            maps = stage(F.interpolate(maps, size=(side, side), mode="nearest"))
        return self.output(maps)


def dropout(values: Tensor, rate: float, noise: Noise | None, name: str) -> Tensor:
    """Drop each value with probability ``rate`` and scale the rest by 1 / (1 - rate).

    Without ``noise`` (evaluation) the values are returned unchanged.
    """
    if noise is None or rate == 0:
        return values
    kept = noise.uniform(name, *values.shape[1:]) >= rate
    return values * kept / (1 - rate)


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


def use_channels_last(module: nn.Module) -> None:
    """Store filters as (out, H, W, in); convolutions and images follow, and get a third faster on CPUs."""
    for values in itertools.chain(module.parameters(), module.buffers()):
        if values.dim() == 4:
            values.data = values.data.to(memory_format=torch.channels_last)
