"""The networks: images (N, C, H, W) in [0, 1] -> logits (N, classes).

Batch statistics would make the result depend on the number of workers. Where the papers' networks have batch
normalisation, these have group normalisation or standardised filters.
"""

import itertools
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.dataset import Split
from pipeline.core.noise import Noise
from pipeline.core.task import DataSpec
from pipeline.layers.convolutional import group_norm
from pipeline.layers.dropout import dropout
from pipeline.layers.standardised import StandardisedConv2d
from pipeline.models.cnn.settings import CnnConfig
from pipeline.models.cnn.whitening import Whitening

HEAD_SCALE = 1 / 9  # of the logits, as in hlb-CIFAR10: it slows the last layer down


class Network(nn.Module, ABC):
    """A network with a linear last layer, ``output``."""

    output: nn.Linear

    @abstractmethod
    def features(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """The input of the last layer, (N, D). With ``noise`` (training) values are dropped."""

    def forward(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        return self.output(self.features(images, noise))

    def fit(self, split: Split) -> None:
        """Called with the training split before the first step."""


class Article(Network):
    """Convolutions with pooling between them, then dense layers (LeCun et al. 1998)."""

    def __init__(self, config: CnnConfig, spec: DataSpec) -> None:
        super().__init__()
        self.rate = config.dropout
        stages: list[nn.Module] = []
        before, side = spec.channels, spec.size
        for index, count in enumerate(config.channels):
            stages += [*_convolution(before, count, config), nn.ReLU()]
            if index < len(config.channels) - 1 and side >= 2:
                stages += [nn.MaxPool2d(2)]
                side //= 2
            before = count
        self.convolutions = nn.Sequential(*stages)
        inputs = [before * side * side, *config.dense]
        self.dense = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(inputs))
        self.output = nn.Linear(inputs[-1], spec.classes)

    def features(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        values = self.convolutions(images * 2 - 1).flatten(1)
        for index, layer in enumerate(self.dense):
            values = F.relu(layer(dropout(values, self.rate, noise, f"dropout {index}")))
        return values


class Residual(Network):
    """Stages of pre-activation residual blocks (He et al. 2016); each but the first halves the side."""

    def __init__(self, config: CnnConfig, spec: DataSpec) -> None:
        super().__init__()
        self.rate = config.dropout
        before = config.channels[0]
        blocks: list[nn.Module] = [*_convolution(spec.channels, before, config)[:1]]
        for stage, count in enumerate(config.channels):
            for block in range(config.depth):
                blocks.append(Block(before, count, 2 if stage and not block else 1, config))
                before = count
        self.blocks = nn.Sequential(*blocks, *_normalisation(before, config), nn.ReLU())
        self.output = nn.Linear(before, spec.classes)

    def features(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        return dropout(self.blocks(images * 2 - 1).mean((2, 3)), self.rate, noise, "dropout")


class Block(nn.Module):
    """x + scale f(x) with a scale that begins at 0, so that also deep networks can be trained without
    normalisation (De & Smith 2020)."""

    def __init__(self, before: int, after: int, stride: int, config: CnnConfig) -> None:
        super().__init__()
        kind = _kind(config)
        self.branch = nn.Sequential(
            *_normalisation(before, config),
            nn.ReLU(),
            kind(before, after, 3, padding=1, stride=stride),
            *_normalisation(after, config),
            nn.ReLU(),
            kind(after, after, 3, padding=1),
        )
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut.append(nn.AvgPool2d(stride, ceil_mode=True))
        if before != after:
            self.shortcut.append(kind(before, after, 1))
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, maps: Tensor) -> Tensor:
        return self.shortcut(maps) + self.scale * self.branch(maps)


class Fast(Network):
    """Learns CIFAR-10 in few epochs: after hlb-CIFAR10 (Balsam 2023) and airbench (Jordan 2024).

    The first layer whitens patches. Pairs of convolutions follow, with pooling after the first one and GELU
    after each. The logits are scaled down.
    """

    def __init__(self, config: CnnConfig, spec: DataSpec) -> None:
        super().__init__()
        self.rate = config.dropout
        self.whitening = Whitening(spec.channels)
        stages: list[nn.Module] = [nn.GELU()]
        before, side = self.whitening.filters, spec.size - 1
        for count in config.channels:
            first, *normalisation = _convolution(before, count, config)
            pooling = [nn.MaxPool2d(2)] if side >= 2 else []
            stages += [first, *pooling, *normalisation, nn.GELU()]
            stages += [*_convolution(count, count, config), nn.GELU()]
            before, side = count, side // 2
        self.convolutions = nn.Sequential(*stages)
        self.output = nn.Linear(before, spec.classes, bias=False)

    def fit(self, split: Split) -> None:
        self.whitening.fit(split)

    def features(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        maps = self.convolutions(self.whitening(images))
        return dropout(maps.amax((2, 3)) * HEAD_SCALE, self.rate, noise, "dropout")


NETWORKS: dict[str, type[Article] | type[Residual] | type[Fast]] = {
    "article": Article,
    "residual": Residual,
    "fast": Fast,
}


def _kind(config: CnnConfig) -> type[nn.Conv2d]:
    return StandardisedConv2d if config.normalisation == "weight" else nn.Conv2d


def _normalisation(count: int, config: CnnConfig) -> list[nn.Module]:
    return [group_norm(count)] if config.normalisation == "group" else []


def _convolution(before: int, after: int, config: CnnConfig) -> list[nn.Module]:
    """A 3 x 3 convolution, and the normalisation of its maps if there is one."""
    return [_kind(config)(before, after, 3, padding=1), *_normalisation(after, config)]
