"""The network: an encoder and a decoder with skip connections, and one convolution on each level of both.

With two convolutions, as in the paper, it learned more slowly in the same time; with groups of channels
normalised, too (docs/LOG.md).
"""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.layers.convolutional import group_norm
from pipeline.layers.standardised import StandardisedConv2d

Block = Callable[[int, int, int], nn.Sequential]  # of the channels before and after, and the stride
FIRST_SCALE = 0.12


class SegmentationNetwork(nn.Module):
    """Images (N, C, H, W) in [0, 1] -> logits (N, classes, H, W).

    ``counts`` are the channels at full resolution and after each halving. ``standardised``: the filters are
    normalised, else groups of channels. The encoder has ``num_blocks`` residual blocks after each halving but
    the first. The decoder reads the encoder's maps and its own, or, with ``adds``, their sum.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        counts: Sequence[int],
        standardised: bool,
        num_blocks: int,
        adds: bool,
    ) -> None:
        super().__init__()
        block: Block = _standardised if standardised else _normalised
        self.adds = adds
        self.input = block(channels, counts[0], 1)
        self.down, self.narrow, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for number, (before, after) in enumerate(itertools.pairwise(counts)):
            inner = [ResidualBlock(after, block) for _ in range(num_blocks if number else 0)]
            self.down.append(nn.Sequential(*block(before, after, 2), *inner))
            self.narrow.insert(0, nn.Conv2d(after, before, 1))
            self.up.insert(0, block(before if adds else 2 * before, before, 1))
        self.output = nn.Conv2d(counts[0], classes, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        maps = [self.input(images * 2 - 1)]
        for down in self.down:
            maps.append(down(maps[-1]))
        result = maps.pop()
        for narrow, up in zip(self.narrow, self.up):
            skipped = maps.pop()
            larger = F.interpolate(narrow(result), size=skipped.shape[-2:], mode="nearest")
            result = up(larger + skipped if self.adds else torch.cat([larger, skipped], 1))
        return self.output(result)


class ResidualBlock(nn.Module):
    """Maps (N, width, h, w) -> the same shape. At first it changes them little."""

    def __init__(self, width: int, block: Block) -> None:
        super().__init__()
        self.layers = nn.Sequential(block(width, width, 1), block(width, width, 1)[:-1])
        self.scale = nn.Parameter(torch.tensor([FIRST_SCALE]))

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(maps + self.scale * self.layers(maps))


def _normalised(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
    return nn.Sequential(convolution, group_norm(outputs), nn.ReLU())


def _standardised(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(StandardisedConv2d(inputs, outputs, 3, stride=stride, padding=1), nn.ReLU())
