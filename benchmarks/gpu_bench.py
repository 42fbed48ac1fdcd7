"""For gpu.py: what its parts share."""

import time
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from gpu_speed import INTERVALS, loop_rate, num_steps, training

from pipeline.core import model_files
from pipeline.core.dataset import Dataset
from pipeline.core.settings import TrainingSettings


class LeftOut(Exception):
    """A part cannot run here; the message says why."""


@dataclass(frozen=True)
class Sizes:
    """How much each part does."""

    steps: int = 60  # of trainings whose bits are compared
    killed_steps: int = 900  # of the training that is killed
    batch_size: int = 128
    seconds: float = 0.8  # of one turn of a speed measurement
    rounds: int = 3
    contract: str = ""  # the names of contract tests must match this regular expression
    contract_seconds: float = 90
    training_seconds: float = 60  # most of one training to a target accuracy
    gan_seconds: float = 120
    num_images: int = 20_000  # synthetic training images
    shape: tuple[int, int] = (3, 32)  # their channels and sides
    tiny: bool = False  # the smallest networks


MINIATURE = Sizes(
    steps=6,
    killed_steps=180,
    batch_size=8,
    seconds=0.0,
    rounds=1,
    contract="repeatable",
    training_seconds=0.0,
    gan_seconds=0.0,
    num_images=200,
    shape=(1, 8),
    tiny=True,
)


@dataclass
class Bench:
    """What the parts share."""

    device: torch.device
    sizes: Sizes
    folder: Path  # temporary
    deadline: float  # by time.monotonic()
    data: dict[str, Dataset]
    scale: float = 1.0  # of all durations
    # Of the part that runs: what it found so far, which is kept if it fails, and what is wrong.
    found: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def left(self) -> float:
        """The seconds that are left."""
        return self.deadline - time.monotonic()

    def check(self, passed: bool, problem: str) -> None:
        """Note that the part failed, unless ``passed``."""
        if not passed:
            self.problems.append(problem)

    def config(self, name: str) -> Any:
        """A model's default configuration; with ``tiny`` sizes a smaller one."""
        if not self.sizes.tiny:
            return model_files.find(name).Config()
        tiny = {"cnn": {"channels": (4, 4), "dense": (8,), "dropout": 0.2, "shift": 0.1}}
        return model_files.find(name).Config(**tiny.get(name, {"width": 8}))

    @property
    def images(self) -> Dataset:
        """The data of parts that need no real data: CIFAR-10 if it is there, or synthetic images."""
        return self.data.get("cifar10", self.data["synthetic"])


def settings_for(
    bench: Bench,
    name: str,
    config: Any = None,
    data: Dataset | None = None,
    seconds: float | None = None,
    **changes: Any,
) -> TrainingSettings:
    """Settings of a training of ``seconds``, by default those of one turn, from the speed of short ones."""
    probe = training(INTERVALS * 3, **changes)
    for _ in range(1 if bench.sizes.tiny else 2):  # the first is slower
        rate = loop_rate(name, data or bench.images, probe, config or bench.config(name), bench.device)
    seconds = bench.sizes.seconds * bench.scale if seconds is None else seconds
    return training(num_steps(rate, probe.batch_size, seconds), **changes)


def default_kernels(measure: Callable[[], float]) -> float:
    """The figure of ``measure`` with kernels that need not be deterministic."""
    torch.set_deterministic_debug_mode("default")
    try:
        return measure()
    finally:
        torch.set_deterministic_debug_mode("error")


def variants() -> list[dict[str, Any]]:
    """The values of precision, tf32 and compile that the training settings accept besides the defaults."""
    found = []
    for name in ("precision", "tf32", "compile"):
        setting = TrainingSettings.model_fields[name]
        values = typing.get_args(setting.annotation) or (True, False)
        found += [{name: value} for value in values if value != setting.default]
    return found
