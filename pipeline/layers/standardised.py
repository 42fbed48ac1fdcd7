"""Convolutions whose filters are normalised, instead of the maps that they make."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GAIN = 1.7  # about keeps the variance through a rectifier or GELU


class StandardisedConv2d(nn.Conv2d):
    """A convolution whose filters have the mean 0 and the norm ``gain``, one for each.

    Scaled weight standardisation (Brock et al. 2021, networks without normalisation). Unlike batch
    normalisation it needs no statistics of the images, and it costs next to nothing.
    """

    def __init__(self, before: int, after: int, side: int, **arguments: int) -> None:
        super().__init__(before, after, side, **arguments)  # type: ignore[arg-type]
        self.gain = nn.Parameter(torch.full((after, 1, 1, 1), GAIN))

    def forward(self, images: Tensor) -> Tensor:
        centred = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        norm = centred.square().sum((1, 2, 3), keepdim=True).clamp_min(1e-8).sqrt()
        return F.conv2d(images, centred * (self.gain / norm), self.bias, self.stride, self.padding)
