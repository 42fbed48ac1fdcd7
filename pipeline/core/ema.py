"""Exponential moving average of the weights."""

from copy import deepcopy

import torch
from torch import Tensor

from pipeline.core.task import Task


class ExponentialMovingAverage:
    """Keeps a copy of ``task`` whose weights are an exponential moving average; ready for evaluation.

    The decay at step t is min(decay, (1 + t) / (10 + t)), so that the initial weights are soon forgotten.
    Buffers are copied.
    """

    def __init__(self, task: Task, decay: float) -> None:
        self.source, self.decay = task, decay
        self.task = deepcopy(task).eval().requires_grad_(False)
        self._averaged: list[Tensor] = list(self.task.parameters())
        self._current: list[Tensor] = list(task.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the weights after ``step``."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.decay else 0.0
        torch._foreach_lerp_(self._averaged, self._current, 1 - decay)
        for averaged, current in zip(self.task.buffers(), self.source.buffers(), strict=True):
            averaged.copy_(current)
