"""The network: an encoder and a decoder with skip connections, and one convolution on each level of both.

With two convolutions, as in the paper, it learned more slowly in the same time; with groups of channels
normalised, too (docs/LOG.md).
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.layers.convolutional import group_norm
from pipeline.layers.standardised import StandardisedConv2d


class SegmentationNetwork(nn.Module):
    """Images (N, C, H, W) in [0, 1] -> logits (N, classes, H, W).

    ``counts`` are the channels at full resolution and after each halving. ``standardised``: the filters are
    normalised, else groups of channels.
    """

    def __init__(self, channels: int, classes: int, counts: Sequence[int], standardised: bool) -> None:
        super().__init__()
        block = _standardised if standardised else _normalised
        self.input = block(channels, counts[0])
        self.down, self.narrow, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for before, after in itertools.pairwise(counts):
            self.down.append(block(before, after, stride=2))
            self.narrow.insert(0, nn.Conv2d(after, before, 1))
            self.up.insert(0, block(2 * before, before))
        self.output = nn.Conv2d(counts[0], classes, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        maps = [self.input(images * 2 - 1)]
        for down in self.down:
            maps.append(down(maps[-1]))
        result = maps.pop()
        for narrow, up in zip(self.narrow, self.up):
            skipped = maps.pop()
            larger = F.interpolate(narrow(result), size=skipped.shape[-2:], mode="nearest")
            result = up(torch.cat([larger, skipped], 1))
        return self.output(result)


def _normalised(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
    return nn.Sequential(convolution, group_norm(outputs), nn.ReLU())


def _standardised(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(StandardisedConv2d(inputs, outputs, 3, stride=stride, padding=1), nn.ReLU())
