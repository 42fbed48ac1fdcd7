"""A U-Net (Ronneberger et al. 2015): an encoder and a decoder of images with skip connections."""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.layers.convolutional import channels, group_norm, sides


class UNet(nn.Module):
    """Images (N, C, H, W) and masks of known pixels (N, 1, H, W) -> image logits (N, C, H, W).

    It has ``width`` channels at full resolution.
    """

    def __init__(self, image_channels: int, size: int, width: int) -> None:
        super().__init__()
        self.sides = sides(size)
        counts = [width, *channels(width, len(self.sides) - 1)]
        self.input = _block(image_channels + 1, width)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for before, after in itertools.pairwise(counts):
            self.down.append(_block(before, after, stride=2))
            self.up.insert(0, _block(before + after, before))
        self.output = nn.Conv2d(width, image_channels, 3, padding=1)

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        maps = [self.input(torch.cat([images * 2 - 1, mask.expand(len(images), -1, -1, -1)], 1))]
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
