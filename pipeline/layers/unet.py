"""A U-Net (Ronneberger et al. 2015): an encoder and a decoder of images with skip connections."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.layers.convolutional import group_norm
from pipeline.layers.standardised import StandardisedConv2d


class UNet(nn.Module):
    """Maps (N, inputs, H, W) -> maps (N, outputs, H, W), without an activation at the end.

    ``counts`` are the channels at full resolution and after each halving. Either groups of channels are
    normalised, or with ``standardised`` the filters.
    """

    def __init__(self, inputs: int, outputs: int, counts: Sequence[int], standardised: bool = False) -> None:
        super().__init__()
        block = _standardised_block if standardised else _block
        self.input = block(inputs, counts[0])
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for before, after in itertools.pairwise(counts):
            self.down.append(block(before, after, stride=2))
            self.up.insert(0, block(before + after, before))
        self.output = nn.Conv2d(counts[0], outputs, 3, padding=1)

    def forward(self, inputs: Tensor) -> Tensor:
        maps = [self.input(inputs)]
        for down in self.down:
            maps.append(down(maps[-1]))
        result = maps.pop()
        for up in self.up:
            skipped = maps.pop()
            larger = F.interpolate(result, size=skipped.shape[-2:], mode="nearest")
            result = up(torch.cat([larger, skipped], 1))
        return self.output(result)


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    first = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
    second = nn.Conv2d(outputs, outputs, 3, padding=1)
    return nn.Sequential(first, group_norm(outputs), nn.ReLU(), second, group_norm(outputs), nn.ReLU())


def _standardised_block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    first = StandardisedConv2d(inputs, outputs, 3, stride=stride, padding=1)
    second = StandardisedConv2d(outputs, outputs, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
