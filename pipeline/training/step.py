"""One training step: each phase in turn, one wrapped forward, one backward, one optimizer step."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from pipeline.models.task import Batch, Phase, Task
from pipeline.noise import Noise
from pipeline.training.schedule import learning_rate_factor
from pipeline.training.settings import TrainingSettings


@dataclass(frozen=True)
class World:
    """The workers of a training as one of them sees them, and where it computes."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default=torch.device("cpu"))
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module  # DistributedDataParallel, where there are several
    microbatch: int = 0  # rows that are computed at once, at most; 0: all of this worker's

    def rows(self, total: int) -> tuple[int, int]:
        """This worker's rows ``start:stop`` of a global batch of ``total``."""
        return total * self.rank // self.size, total * (self.rank + 1) // self.size

    def share(self, value: Any) -> Any:
        """Worker 0's ``value``, for all workers."""
        box = [value]
        if self.size > 1:
            torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def sum(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over all workers."""
        if self.size > 1:
            torch.distributed.all_reduce(values)
        return values


class PhaseLoss(nn.Module):
    """One phase as a module that registers only the phase's own network, so that distribution and gradients stop there."""

    def __init__(self, task: Task, phase: Phase, settings: TrainingSettings) -> None:
        super().__init__()
        self.network = phase.module
        self.phase, self.settings = phase.name, settings
        self._task = [task]  # in a list, lest nn.Module registers all of its networks

    def forward(self, batch: Batch, noise: Noise) -> tuple[Tensor, dict[str, Tensor]]:
        loss, values = self._task[0].loss(self.phase, batch, noise)
        return loss + self._penalty(), {"loss": loss, **values}

    def _penalty(self) -> Tensor | float:
        penalty: Tensor | float = 0.0
        if self.settings.l1 or self.settings.l2:
            for weight in self.network.parameters():
                if weight.dim() > 1:  # not biases and gains
                    penalty = penalty + self.settings.l1 * weight.abs().sum() + self.settings.l2 * weight.square().sum()
        return penalty


class Step:
    """Runs the phases of a task's step. Metrics are named ``<phase>/<quantity>`` (``<quantity>`` where there is one phase)."""

    def __init__(self, task: Task, phases: list[Phase], settings: TrainingSettings, world: World) -> None:
        self.task, self.phases, self.settings, self.world = task, phases, settings, world
        self.losses = [world.wrap(PhaseLoss(task, phase, settings)) for phase in phases]
        self.rates = [[group["lr"] for group in phase.optimizer.param_groups] for phase in phases]

    def run(self, number: int, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """Take step ``number`` with this worker's rows of the global batch; return detached scalars."""
        metrics: dict[str, Tensor] = {}
        size = self.world.microbatch or len(batch)
        bounds = [(start, min(start + size, len(batch))) for start in range(0, len(batch), size)]
        pieces = [(batch.rows(*piece), noise.rows(*piece)) for piece in bounds]
        for index, phase in enumerate(self.phases):
            if number % phase.every:
                continue
            self.task.requires_grad_(False)
            phase.module.requires_grad_(True)
            phase.optimizer.zero_grad(set_to_none=True)
            values = self._accumulate(index, pieces)
            norm = nn.utils.clip_grad_norm_(phase.module.parameters(), self.settings.clip_norm or float("inf"))
            self._set_rate(index, number)
            phase.optimizer.step()
            prefix = f"{phase.name}/" if len(self.phases) > 1 else ""
            metrics.update({f"{prefix}{name}": value for name, value in values.items()})
            metrics[f"{prefix}gradient_norm"] = norm.detach()
        return metrics

    def _accumulate(self, index: int, pieces: list[tuple[Batch, Noise]]) -> dict[str, Tensor]:
        """Add up the gradients of the pieces, which workers sum with the last one; return the sums of what was measured."""
        loss_of, sums = cast(Any, self.losses[index]), dict[str, Tensor]()
        for place, (batch, noise) in enumerate(pieces):
            if place == 1:
                _iterate_norms(self.task, False)
            weight = len(batch) * self.world.size / noise.total  # workers' means are averaged: uneven shares keep their weight
            with loss_of.no_sync() if self.world.size > 1 and place < len(pieces) - 1 else nullcontext():
                with self._precision():
                    loss, values = loss_of(batch, noise.at(self.phases[index].name))
                (loss * weight).backward()
            for name, value in values.items():
                part = value.detach().float() * weight
                sums[name] = sums[name] + part if name in sums else part
        if len(pieces) > 1:
            _iterate_norms(self.task, True)
        return sums

    def _set_rate(self, index: int, number: int) -> None:
        factor = learning_rate_factor(self.settings.schedule, number, self.settings.num_steps)
        for group, rate in zip(self.phases[index].optimizer.param_groups, self.rates[index], strict=True):
            group["lr"] = rate * factor

    def _precision(self) -> AbstractContextManager:
        if self.settings.precision == "bfloat16":
            return torch.autocast(self.world.device.type, dtype=torch.bfloat16)
        return nullcontext()


def _iterate_norms(task: Task, on: bool) -> None:
    """Whether spectral norms take a power iteration when they are used: with the first piece of a batch, as with a whole one."""
    for module in task.modules():
        if isinstance(module, ParametrizationList):
            module.train(on)


class Average:
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
