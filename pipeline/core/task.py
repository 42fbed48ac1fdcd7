"""The interface between a model and the rest of the pipeline.

A training step is a list of *phases*; a simple model has one phase. The loop is responsible for the backward
pass, clipping, precision, learning rate, weight averaging, logging, checkpoints and distribution. A task is
responsible for its networks, losses and optimizers, and does not depend on Ray, MLflow or DVC.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.core.batch import Batch
from pipeline.core.dataset import Split
from pipeline.core.fields import DataSpec
from pipeline.core.noise import Noise
from pipeline.core.settings import ScheduleSettings
from pipeline.params import Section


class Ratio(NamedTuple):
    """A metric that is a ratio of sums over the examples, such as the intersection over the union.

    Both tensors are (N, ...). The sums over N are divided; further dimensions, such as classes, are averaged.
    """

    numerator: Tensor
    denominator: Tensor


def mean_ratio(numerators: Tensor, denominators: Tensor) -> float:
    """The mean of the ratios of sums whose denominator is positive; 1 if all are 0: nothing was missed."""
    if not denominators.any():
        return 1.0
    positive = denominators > 0
    return float((numerators[positive] / denominators[positive]).mean())


class Preview(NamedTuple):
    """Images to draw as a grid: (N, C, H, W) in [0, 1], and the number of columns."""

    images: Tensor
    columns: int


@dataclass(frozen=True)
class Phase:
    """A part of the training step: a loss, and the optimizer that minimises it.

    It runs on the steps from ``first`` to ``last`` (None: the end) that are multiples of ``every``. Phases
    may share a module and its optimizer, for example to compute a penalty only on some steps.
    """

    name: str
    module: nn.Module  # the only module whose parameters it updates
    optimizer: Optimizer
    every: int = 1
    first: int = 1
    last: int | None = None
    schedule: ScheduleSettings | None = None  # from first to last; None: that of the training

    def num_runs(self, after: int, until: int) -> int:
        """How often it runs on the steps ``after`` + 1 to ``until``."""
        start = max(after, self.first - 1)
        stop = until if self.last is None else min(until, self.last)
        return max(0, stop // self.every - start // self.every)


class Task(nn.Module, ABC):
    """A model, its losses and its optimizers. Its child modules are its networks.

    Input and output images are float32 in [0, 1]; a task rescales them inside if its networks need it. All
    random numbers come from the ``noise`` argument. Batch statistics must not be used: with them the result
    depends on the number of workers.
    """

    Config: ClassVar[type[Section]]
    dataset: ClassVar[str] = "images"  # it learns from data/processed/<dataset>
    # Trained models that it needs. Its constructor gets them as keyword arguments and keeps them as
    # attributes of the same names: their weights are saved with its own.
    needs: ClassVar[tuple[str, ...]] = ()

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
    def evaluate(self, batch: Batch, noise: Noise) -> Mapping[str, Tensor | Ratio]:
        """Metrics: values (N,), which the caller averages over a split, or a :class:`Ratio`.

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

    def latents(self, count: int, noise: Noise, labels: Tensor | None = None) -> Tensor | None:
        """``count`` random latents or codes (count, L). A model that encodes uses the ``labels`` (count,)."""
        return None

    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor | None:
        """The images (N, C, H, W) of latents or codes (N, L), of classes ``labels`` (N,)."""
        return None

    def mix(
        self, latents_a: Tensor, latents_b: Tensor, level: int, labels: Tensor | None = None
    ) -> Tensor | None:
        """Images with the styles of ``latents_a`` (N, L) at levels below ``level``, else ``latents_b``."""
        return None

    def complete(
        self, images: Tensor, known: Tensor, noise: Noise, labels: Tensor | None = None
    ) -> Tensor | None:
        """Images (N, C, H, W) whose pixels are drawn where ``known`` (N or 1, 1, H, W) is 0.

        The other pixels are those of ``images``. ``labels`` (N,) are the classes; None: of any class.
        """
        return None

    def segment(self, images: Tensor) -> Tensor | None:
        """Logits (N, K, H, W) of the ``K`` values of the field ``mask``."""
        return None

    def forecast(self, frames: Tensor, count: int) -> Tensor | None:
        """The ``count`` frames (N, count, C, H, W) that follow ``frames`` (N, T, C, H, W)."""
        return None

    @property
    def num_levels(self) -> int:
        """The number of levels of :meth:`mix`; 0 without styles."""
        return 0

    def preview(self, examples: Batch, noise: Noise) -> Preview | None:
        """What is drawn during a training; ``examples`` and ``noise`` are the same each time.

        By default generated images, or else the examples' images with their reconstructions.
        """
        if "image" not in examples.fields:
            return None
        count, columns = len(examples), 8
        classes = self.spec.classes if "label" in self.spec.fields else 0
        labels = torch.arange(count, device=self.device) % classes if classes else None
        images = self.generate(labels, count, noise)
        if images is None:
            originals = examples.images[: count // 2]
            restored = self.reconstruct(originals)
            images = None if restored is None else torch.stack([originals, restored], 1).flatten(0, 1)
        elif 2 <= classes <= 16:
            columns = classes * max(1, 10 // classes)  # each column shows one class
        return None if images is None else Preview(images[: count // columns * columns], columns)

    def on_train_start(self, split: Split) -> None:
        """Called with the training split before the first step, also of a resumed training."""

    def on_train_end(self, batches: Iterable[Batch]) -> None:
        """Called once after the last step, with the training split in order; may fit further parameters."""

    def calibrate(self, batches: Iterable[Batch]) -> None:
        """Called after :meth:`on_train_end` with the validation split; may fit what training data cannot."""

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.parameters()).device
