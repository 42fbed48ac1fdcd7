"""Dense encoder and decoder of images (Hinton & Salakhutdinov 2006)."""

import itertools
from collections.abc import Sequence

from torch import nn


def dense_encoder(image_channels: int, size: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Images (N, C, H, W) -> vectors (N, outputs), with ``hidden`` layers of so many values."""
    return nn.Sequential(nn.Flatten(), *_layers([image_channels * size**2, *hidden, outputs]))


def dense_decoder(inputs: int, image_channels: int, size: int, hidden: Sequence[int]) -> nn.Sequential:
    """Vectors (N, inputs) -> image logits (N, C, H, W), with the ``hidden`` layers in reverse."""
    layers = _layers([inputs, *hidden[::-1], image_channels * size**2])
    return nn.Sequential(*layers, nn.Unflatten(1, (image_channels, size, size)))


def _layers(sizes: list[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return layers[:-1]
