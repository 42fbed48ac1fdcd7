"""What a step is: which examples it sees, and at what share of the learning rate."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from pipeline.errors import BadInput
from pipeline.noise import generator
from pipeline.training.settings import ScheduleSettings


def learning_rate_factor(schedule: ScheduleSettings, step: int, num_steps: int) -> float:
    """The factor on each optimizer's own learning rate at ``step`` in 1..num_steps."""
    if step <= schedule.warmup_steps:
        return step / schedule.warmup_steps
    if schedule.kind == "constant":
        return 1.0
    done = (step - schedule.warmup_steps) / max(1, num_steps - schedule.warmup_steps)
    shape = (1 + math.cos(math.pi * done)) / 2 if schedule.kind == "cosine" else 1 - done
    return schedule.final + (1 - schedule.final) * shape


@dataclass(frozen=True)
class Order:
    """The order of the data: a permutation for each epoch, a pure function of (seed, epoch).

    An epoch is as many whole batches as the split holds; what is left over differs from epoch to epoch.
    """

    seed: int
    count: int
    batch_size: int

    def __post_init__(self) -> None:
        if self.count < self.batch_size:
            raise BadInput(
                f"batch_size {self.batch_size} is larger than the training split ({self.count} images)",
                where="params.yaml",
                remedy=f"set batch_size to at most {self.count}",
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the split."""
        return self.count // self.batch_size

    def indices(self, step: int) -> np.ndarray:
        """The examples of the global batch at ``step`` (from 1), (batch_size,)."""
        epoch, position = divmod(step - 1, self.steps_per_epoch)
        return _permutation(self.seed, epoch, self.count)[position * self.batch_size : (position + 1) * self.batch_size]


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return torch.randperm(count, generator=generator(seed, epoch, "order")).numpy()
