"""A convolutional classifier (LeCun et al. 1998): convolutions and pooling, dense layers, softmax.

The default is a common tutorial network: convolutions with 32, 64 and 64 channels and a dense layer of 64.
"""

import itertools
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.dataset import Split
from pipeline.core.noise import Noise
from pipeline.core.optimizers import OptimizerSettings
from pipeline.core.task import Batch, DataSpec, Phase, Task
from pipeline.layers.augmentation import color_jitter, flip, jitter, rotate
from pipeline.layers.convolutional import group_norm
from pipeline.layers.dropout import dropout
from pipeline.params import Section


class CnnConfig(Section):
    """``channels``: one convolution each, with pooling between them. ``dense``: one dense layer each."""

    channels: tuple[int, ...] = Field((32, 64, 64), min_length=1)
    dense: tuple[int, ...] = Field((64,), min_length=1)
    normalisation: Literal["none", "group"] = "none"
    dropout: float = Field(0.0, ge=0, lt=1)  # before each dense layer
    # Augmentation of the training images, each by random numbers; 0: off.
    flip: float = Field(0.0, ge=0, le=1)  # probability that an image is mirrored, left to right
    rotate: float = Field(0.0, ge=0, le=180)  # largest angle, in degrees
    shift: float = Field(0.0, ge=0, le=0.5)  # largest shift, as a fraction of the side
    zoom: float = Field(0.0, ge=0, le=0.5)  # sides are scaled by 1 +- zoom
    color_jitter: float = Field(0.0, ge=0, le=1)  # brightness, contrast, saturation are scaled by 1 +- this
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    class_weights: Literal["none", "auto"] = "none"  # auto: 1 / frequency; all classes then count the same
    optimizer: OptimizerSettings = OptimizerSettings()


class Cnn(Task):
    """Classifies images.

    The output of its last dense layer is the feature space in which images are compared.
    """

    Config = CnnConfig
    class_weights: Tensor | None = None  # (classes,); their mean over the training images is 1

    def __init__(self, config: CnnConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.network = Network(config, spec)

    def phases(self) -> list[Phase]:
        return [Phase("classifier", self.network, self.config.optimizer.build(self.network.parameters()))]

    def on_train_start(self, split: Split) -> None:
        if self.config.class_weights == "auto":
            labels = torch.from_numpy(split.labels)
            counts = torch.bincount(labels, minlength=self.spec.classes)
            weights = len(labels) / (counts.clamp_min(1) * (counts > 0).sum())
            self.class_weights = weights.to(self.device)

    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Mapping[str, Tensor]]:
        logits = self.network(self._augment(batch.images, noise), noise).float()
        smoothing = self.config.label_smoothing
        # -log p(y | x)
        if self.class_weights is None:
            loss = F.cross_entropy(logits, batch.labels, label_smoothing=smoothing)
        else:
            losses = F.cross_entropy(logits, batch.labels, label_smoothing=smoothing, reduction="none")
            loss = (losses * self.class_weights[batch.labels]).mean()
        return loss, {"accuracy": (logits.argmax(1) == batch.labels).float().mean()}

    def _augment(self, images: Tensor, noise: Noise) -> Tensor:
        images = flip(images, noise, self.config.flip)
        images = rotate(images, noise, self.config.rotate)
        images = jitter(images, noise, self.config.shift, self.config.zoom)
        return color_jitter(images, noise, self.config.color_jitter)

    def evaluate(self, batch: Batch, noise: Noise) -> Mapping[str, Tensor]:
        logits = self.classify(batch.images)
        return {
            "accuracy": (logits.argmax(1) == batch.labels).float(),
            "cross_entropy": F.cross_entropy(logits, batch.labels, reduction="none"),
        }

    def classify(self, images: Tensor) -> Tensor:
        return self.network(images)

    def features(self, images: Tensor) -> Tensor:
        return self.network.features(images)


class Network(nn.Module):
    """(N, C, H, W) in [0, 1] -> logits (N, classes)."""

    def __init__(self, config: CnnConfig, spec: DataSpec) -> None:
        super().__init__()
        self.rate = config.dropout
        stages: list[nn.Module] = []
        before, side = spec.channels, spec.size
        for index, count in enumerate(config.channels):
            stages += [nn.Conv2d(before, count, 3, padding=1)]
            stages += [group_norm(count)] if config.normalisation == "group" else []
            stages += [nn.ReLU()]
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

    def forward(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        return self.output(self.features(images, noise))
