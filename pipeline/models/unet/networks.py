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
SHARPNESS = 40.0  # of what the last layer reads of the pixels: so it soon finds where an object's edge is


class SegmentationNetwork(nn.Module):
    """Images (N, C, H, W) in [0, 1] -> logits (N, classes, H, W).

    Patches of ``patch_size`` x ``patch_size`` pixels become channels, and logits are predicted for a patch at
    a time; its pixels are read once more for this. Sides that are no multiple of the patch are padded.
    ``counts`` are the channels of the patches' maps and after each halving. ``standardised``: the filters are
    normalised, else groups of channels. Where the sides of maps are at most a quarter of the image's, the
    encoder has ``num_blocks`` residual blocks on each level, and the decoder ``decoder_blocks``. The decoder
    reads the encoder's maps and its own, or, with ``adds``, their sum.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        counts: Sequence[int],
        standardised: bool,
        num_blocks: int,
        decoder_blocks: int,
        adds: bool,
        patch_size: int,
    ) -> None:
        super().__init__()
        block: Block = _standardised if standardised else _normalised
        self.adds, self.patch_size = adds, patch_size
        values = channels * patch_size**2
        self.input = block(values, counts[0], 1)
        self.down, self.narrow, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for number, (before, after) in enumerate(itertools.pairwise(counts), 1):
            reduced = patch_size * 2**number  # how often the side of this level's maps fits into the image's
            inner = [ResidualBlock(after, block) for _ in range(num_blocks if reduced >= 4 else 0)]
            self.down.append(nn.Sequential(*block(before, after, 2), *inner))
            self.narrow.insert(0, nn.Conv2d(after, before, 1))
            inner = [ResidualBlock(before, block) for _ in range(decoder_blocks if reduced >= 8 else 0)]
            self.up.insert(0, nn.Sequential(*block(before if adds else 2 * before, before, 1), *inner))
        if patch_size == 1:
            self.output = nn.Conv2d(counts[0], classes, 3, padding=1)
        else:
            self.output = nn.Conv2d(counts[0] + values, classes * patch_size**2, 1)
            with torch.no_grad():
                self.output.weight[:, counts[0] :] /= SHARPNESS

    def forward(self, images: Tensor) -> Tensor:
        if self.patch_size == 1:
            return self.output(self._maps(images * 2 - 1))
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % self.patch_size, 0, -height % self.patch_size))
        patches = F.pixel_unshuffle(padded * 2 - 1, self.patch_size)
        logits = self.output(torch.cat([self._maps(patches), SHARPNESS * patches], 1))
        return F.pixel_shuffle(logits, self.patch_size)[..., :height, :width]

    def _maps(self, values: Tensor) -> Tensor:
        maps = [self.input(values)]
        for down in self.down:
            maps.append(down(maps[-1]))
        result = maps.pop()
        for narrow, up in zip(self.narrow, self.up):
            skipped = maps.pop()
            larger = F.interpolate(narrow(result), size=skipped.shape[-2:], mode="nearest")
            result = up(larger + skipped if self.adds else torch.cat([larger, skipped], 1))
        return result


class ResidualBlock(nn.Module):
    """Maps (N, width, h, w) -> the same shape. At first it changes them little."""

    def __init__(self, width: int, block: Block) -> None:
        super().__init__()
        self.layers = nn.Sequential(block(width, width, 1), block(width, width, 1)[:-1])
        self.scale = nn.Parameter(torch.tensor([FIRST_SCALE]))

    def forward(self, maps: Tensor) -> Tensor:
        change = self.layers(maps)
        return F.relu(maps + self.scale.type_as(change) * change)  # in 16 bits, if the maps are


def _normalised(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
    return nn.Sequential(convolution, group_norm(outputs), nn.ReLU())


def _standardised(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(StandardisedConv2d(inputs, outputs, 3, stride=stride, padding=1), nn.ReLU())
