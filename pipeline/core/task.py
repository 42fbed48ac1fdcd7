"""The interface between a model and the rest of the pipeline.

A training step is a list of *phases*; a model with one optimizer has one phase. The loop is responsible for
the backward pass, clipping, precision, learning rate, weight averaging, logging, checkpoints and
distribution. A task is responsible for its networks, losses and optimizers, and does not depend on Ray,
MLflow or DVC.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.core.noise import Noise
from pipeline.params import Section


@dataclass(frozen=True)
class DataSpec:
    """Properties of the data: images have ``channels`` x ``size`` x ``size`` values, labels ``classes``."""

    channels: int
    size: int
    classes: int


@dataclass(frozen=True)
class Batch:
    """Examples on one device: images (N, C, H, W), float32 in [0, 1]; labels (N,), int64."""

    images: Tensor
    labels: Tensor

    @classmethod
    def of(
        cls, images: np.ndarray | Tensor, labels: np.ndarray | Tensor, device: torch.device | str = "cpu"
    ) -> "Batch":
        """A batch from uint8 images (N, C, H, W) and labels (N,), as stored in the shards."""
        pixels, labels = (torch.as_tensor(given).to(device, non_blocking=True) for given in (images, labels))
        values = pixels.float().div_(255)
        if values.dim() == 4:  # images, not clips
            values = values.contiguous(memory_format=torch.channels_last)
        return cls(values, labels)

    def rows(self, start: int, stop: int) -> "Batch":
        """Some of the examples."""
        return Batch(self.images[start:stop], self.labels[start:stop])

    def __len__(self) -> int:
        return len(self.labels)


class Ratio(NamedTuple):
    """A metric that is a ratio of sums over the examples, such as the intersection over the union.

    Both tensors are (N, ...). The sums over N are divided; further dimensions, such as classes, are averaged.
    """

    numerator: Tensor
    denominator: Tensor


@dataclass(frozen=True)
class Phase:
    """A part of the training step with its own optimizer."""

    name: str
    module: nn.Module  # its parameters are updated by this phase only
    optimizer: Optimizer
    every: int = 1  # the phase runs on the steps that are multiples of this


class Task(nn.Module, ABC):
    """A model, its losses and its optimizers. Its child modules are its networks.

    Input and output images are float32 in [0, 1]; a task rescales them inside if its networks need it. All
    random numbers come from the ``noise`` argument. Batch statistics must not be used: with them the result
    depends on the number of workers.
    """

    Config: ClassVar[type[Section]]
    dataset: ClassVar[str] = "images"  # it learns from data/processed/<dataset>

    def __init__(self, config: Any, spec: DataSpec) -> None:
        super().__init__()
        self.config, self.spec = config, spec

    @abstractmethod
    def phases(self) -> list[Phase]:
        """The phases of a step, in order, each with a new optimizer."""

    @abstractmethod
    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss, a mean over the batch's examples, and further scalars to log (also means)."""

    @abstractmethod
    def evaluate(self, batch: Batch, noise: Noise) -> Mapping[str, Tensor]:
        """Per-example metrics, each (N,); the caller averages them over a split.

        ``noise`` is for this batch's rows.
        """

    def generate(self, labels: Tensor | None, count: int, noise: Noise) -> Tensor | None:
        """``count`` images (count, C, H, W), of classes ``labels`` (count,) or of random classes."""
        return None

    def classify(self, images: Tensor) -> Tensor | None:
        """Logits (N, classes), for a classifier."""
        return None

    def features(self, images: Tensor) -> Tensor | None:
        """A classifier's features (N, D): the input of its last layer. Images are compared in this space."""
        return None

    def reconstruct(self, images: Tensor) -> Tensor | None:
        """An autoencoder's reconstructions (N, C, H, W) of ``images``."""
        return None

    def encode(self, images: Tensor) -> Tensor | None:
        """An autoencoder's codes (N, D) of ``images``."""
        return None

    def on_train_end(self, batches: Iterable[Batch]) -> None:
        """Called once after the last step, with the training split in order; may fit further parameters."""

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.parameters()).device
