"""Averaged weights."""

from copy import deepcopy

import torch

from pipeline.core.task import Task


class ExponentialMovingAverage:
    """An exponential moving average of a task's weights (Polyak averaging), itself a task ready for evaluation.

    The decay is ramped, min(decay, (1 + t) / (10 + t)), so that the first steps do not linger. Buffers are copied.
    """

    def __init__(self, task: Task, decay: float) -> None:
        self.source, self.decay = task, decay
        self.task = deepcopy(task).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights after ``step``."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.decay else 0.0
        torch._foreach_lerp_(list(self.task.parameters()), list(self.source.parameters()), 1 - decay)
        for mine, theirs in zip(self.task.buffers(), self.source.buffers(), strict=True):
            mine.copy_(theirs)
