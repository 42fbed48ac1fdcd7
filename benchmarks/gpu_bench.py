"""For gpu.py: what its parts share."""

import time
import traceback
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from gpu_data import synthetic
from gpu_speed import INTERVALS, loop_rate, num_steps, training

from pipeline.core import model_files
from pipeline.core.dataset import Dataset
from pipeline.core.settings import TrainingSettings

PIXELS = {"tokens": "pixels"}  # codes would need a trained VQ-VAE
CONFIGS: dict[str, dict[str, Any]] = {"transformer": PIXELS}
TINY: dict[str, dict[str, Any]] = {
    "cnn": {"channels": (4, 4), "dense": (8,), "dropout": 0.2, "shift": 0.1},
    "transformer": PIXELS | {"width": 8, "depth": 1, "heads": 2},
    "unet": {"width": 8, "depth": 2},
}


class LeftOut(Exception):
    """A part cannot run here; the message says why."""


@dataclass(frozen=True)
class Sizes:
    """How much each part does."""

    steps: int = 60  # of trainings whose bits are compared
    killed_steps: int = 900  # of the training that is killed
    batch_size: int = 128
    seconds: float = 0.7  # of one turn of a speed measurement
    rounds: int = 2
    contract_seconds: float = 65
    training_seconds: float = 60  # most of one training to a target accuracy
    gan_seconds: float = 120
    num_images: int = 20_000  # synthetic training images; a tenth of them are clips and scenes
    shape: tuple[int, int] = (3, 32)  # their channels and sides
    side_for_tokens: int = 12  # of grey images that are drawn pixel by pixel
    tiny: bool = False  # the smallest networks


MINIATURE = Sizes(
    steps=6,
    killed_steps=180,
    batch_size=8,
    seconds=0.0,
    rounds=1,
    contract_seconds=8,
    training_seconds=0.0,
    gan_seconds=0.0,
    num_images=200,
    shape=(1, 8),
    side_for_tokens=4,
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

    @contextmanager
    def going_on(self, what: str) -> Iterator[None]:
        """Note an error in the block as a problem of ``what``; the part goes on after it."""
        try:
            yield
        except Exception as error:
            self.check(False, f"{what}: {type(error).__name__}: {error}"[:400])
            self.found.setdefault("tracebacks", []).append(traceback.format_exc()[-3000:])

    def config(self, name: str) -> Any:
        """A model's default configuration; with ``tiny`` sizes a smaller one."""
        tiny = TINY.get(name, {"width": 8})
        return model_files.find(name).Config(**tiny if self.sizes.tiny else CONFIGS.get(name, {}))

    def data_for(self, name: str) -> Dataset:
        """The data of a model in parts that need no real data: CIFAR-10 if it is there, or synthetic."""
        if name == "transformer":
            return self.data["tokens"]
        kind = model_files.find(name).dataset
        return self.data["cifar10"] if kind == "images" and "cifar10" in self.data else self.data[kind]


def synthetic_data(sizes: Sizes, folder: Path) -> dict[str, Dataset]:
    """Images, clips and scenes, and images for a Transformer that draws pixels."""
    (channels, side), count = sizes.shape, sizes.num_images
    return {
        "images": synthetic(folder / "images", "images", channels, side, count),
        "clips": synthetic(folder / "clips", "clips", 1, side, max(100, count // 10)),
        "scenes": synthetic(folder / "scenes", "scenes", channels, side, max(100, count // 10)),
        "tokens": synthetic(folder / "tokens", "images", 1, sizes.side_for_tokens, max(100, count // 10)),
    }


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
        rate = loop_rate(
            name, data or bench.data_for(name), probe, config or bench.config(name), bench.device
        )
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
