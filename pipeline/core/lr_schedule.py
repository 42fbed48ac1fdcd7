"""The learning-rate schedule."""

import math

from pipeline.core.settings import ScheduleSettings


def learning_rate_factor(schedule: ScheduleSettings, step: int, num_steps: int) -> float:
    """The factor on each optimizer's learning rate at ``step`` (1 to num_steps)."""
    if step <= schedule.warmup_steps:
        return step / schedule.warmup_steps
    if schedule.kind == "constant":
        return 1.0
    done = (step - schedule.warmup_steps) / max(1, num_steps - schedule.warmup_steps)
    shape = (1 + math.cos(math.pi * done)) / 2 if schedule.kind == "cosine" else 1 - done
    return schedule.final + (1 - schedule.final) * shape
