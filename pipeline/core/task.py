"""The contract between a model and everything else.

A training step is a list of *phases*; a model with one optimizer is a list of one. The loop owns backward, clipping,
precision, learning rate, weight averaging, logging, checkpoints and distribution; a task owns its networks, its losses
and its optimizers, and knows nothing of Ray, MLflow or DVC.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.core.noise import Noise
from pipeline.params import Section


@dataclass(frozen=True)
class DataSpec:
    """What the data determines and no setting may contradict: square images of ``channels`` x ``size`` x ``size``."""

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
        """From uint8 images (N, C, H, W) and labels (N,) as the shards hold them."""
        pixels, labels = (torch.as_tensor(given).to(device, non_blocking=True) for given in (images, labels))
        return cls(pixels.float().div_(255).contiguous(memory_format=torch.channels_last), labels)

    def rows(self, start: int, stop: int) -> "Batch":
        """Some of the examples."""
        return Batch(self.images[start:stop], self.labels[start:stop])

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Phase:
    """One optimizer's turn within a training step."""

    name: str
    module: nn.Module  # whose parameters this phase, and no other, updates
    optimizer: Optimizer
    every: int = 1  # runs on the steps that are multiples of this


class Task(nn.Module, ABC):
    """A model, its losses and its optimizers. Its children are its networks.

    Images go in and come out as float32 in [0, 1]; whatever a network prefers is done inside. Randomness comes from the
    given noise only. Batch statistics are not used: they would make the result depend on the number of workers.
    """

    Config: ClassVar[type[Section]]

    def __init__(self, config: Any, spec: DataSpec) -> None:
        super().__init__()
        self.config, self.spec = config, spec

    @abstractmethod
    def phases(self) -> list[Phase]:
        """The phases of a step, in order, each with a new optimizer."""

    @abstractmethod
    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The scalar to minimise, a mean over the batch's examples, and further scalars (means too) to log."""

    @abstractmethod
    def evaluate(self, batch: Batch, noise: Noise) -> Mapping[str, Tensor]:
        """Per-example values, each (N,), to be summed over a split and divided once. ``noise`` covers this batch's rows."""

    def generate(self, labels: Tensor | None, count: int, noise: Noise) -> Tensor | None:
        """``count`` new images (count, C, H, W), of the given classes (count,) or of classes drawn from ``noise``."""
        return None

    def classify(self, images: Tensor) -> Tensor | None:
        """Logits (N, classes), for a classifier."""
        return None

    def features(self, images: Tensor) -> Tensor | None:
        """The feature vectors (N, D) behind a classifier's last layer: the space in which images are compared."""
        return None

    def reconstruct(self, images: Tensor) -> Tensor | None:
        """The images (N, C, H, W) that come out of the code of ``images``, for an autoencoder."""
        return None

    def encode(self, images: Tensor) -> Tensor | None:
        """The code (N, D) of ``images``, for an autoencoder."""
        return None

    def on_train_end(self, batches: Iterable[Batch]) -> None:
        """Once, after the last step, with the whole training split in order: fit what gradient descent does not."""

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(self.parameters()).device
