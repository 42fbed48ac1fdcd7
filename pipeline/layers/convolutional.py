"""Convolutional encoder and decoder of images."""

import itertools
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

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
    """Group normalisation (Wu & He 2018) in groups of eight or more channels, without batch statistics."""
    return nn.GroupNorm(num_groups(count, GROUP_CHANNELS), count)


def num_groups(count: int, size: int) -> int:
    """The largest number of equal groups of at least ``size`` of ``count`` channels; at least 1."""
    return next(number for number in range(max(1, count // size), 0, -1) if count % number == 0)


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
