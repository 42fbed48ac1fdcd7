"""The encoder and the decoder of the vector-quantised autoencoder."""

import itertools

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.task import DataSpec
from pipeline.layers.convolutional import group_norm
from pipeline.models.vqvae.settings import VqvaeConfig


def sides(size: int, halvings: int) -> list[int]:
    """Sides of the maps, from the image's on: each is half the last, rounded up."""
    result = [size]
    for _ in range(halvings):
        result.append((result[-1] + 1) // 2)
    return result


class ResidualBlock(nn.Module):
    """Maps (N, width, h, w) -> the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            group_norm(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            group_norm(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.layers(maps)


class Encoder(nn.Sequential):
    """Images (N, C, H, W) in [0, 1] -> encodings (N, D, h, w)."""

    def __init__(self, config: VqvaeConfig, spec: DataSpec) -> None:
        width, layers, before = config.width, list[nn.Module](), spec.channels
        for side in sides(spec.size, config.halvings)[:-1]:
            layers += [nn.Conv2d(before, width, 4 if side % 2 == 0 else 3, stride=2, padding=1)]
            layers += [group_norm(width), nn.ReLU()]
            before = width
        layers += [nn.Conv2d(width, width, 3, padding=1)]
        layers += [ResidualBlock(width) for _ in range(config.num_blocks)]
        super().__init__(*layers, group_norm(width), nn.ReLU(), nn.Conv2d(width, config.code_size, 1))


class Decoder(nn.Module):
    """Codes (N, D, h, w) -> image logits (N, C, H, W). It has half the width at full resolution."""

    def __init__(self, config: VqvaeConfig, spec: DataSpec) -> None:
        super().__init__()
        width = config.width
        self.sides = sides(spec.size, config.halvings)[::-1]
        blocks = [ResidualBlock(width) for _ in range(config.num_blocks)]
        self.input = nn.Sequential(nn.Conv2d(config.code_size, width, 3, padding=1), *blocks)
        widths = [*[width] * config.halvings, width // 2]
        self.stages = nn.ModuleList(
            nn.Sequential(group_norm(before), nn.ReLU(), nn.Conv2d(before, after, 3, padding=1))
            for before, after in itertools.pairwise(widths)
        )
        last = nn.Conv2d(widths[-1], spec.channels, 3, padding=1)
        self.output = nn.Sequential(group_norm(widths[-1]), nn.ReLU(), last)

    def forward(self, codes: Tensor) -> Tensor:
        maps = self.input(codes)
        for stage, side in zip(self.stages, self.sides[1:], strict=True):
            maps = stage(F.interpolate(maps, size=(side, side), mode="nearest"))
        return self.output(maps)
