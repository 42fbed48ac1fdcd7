"""One training step: each phase in turn, one wrapped forward, one backward, one optimizer step."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from pipeline.core.distributed import DistributedContext
from pipeline.core.lr_schedule import learning_rate_factor
from pipeline.core.noise import Noise
from pipeline.core.settings import TrainingSettings
from pipeline.core.task import Batch, Phase, Task


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
                    penalty = (
                        penalty
                        + self.settings.l1 * weight.abs().sum()
                        + self.settings.l2 * weight.square().sum()
                    )
        return penalty


class Step:
    """Runs the phases of a task's step. Metrics are named ``<phase>/<quantity>`` (``<quantity>`` where there is one phase)."""

    def __init__(
        self, task: Task, phases: list[Phase], settings: TrainingSettings, context: DistributedContext
    ) -> None:
        self.task, self.phases, self.settings, self.context = task, phases, settings, context
        self.losses = [context.wrap(PhaseLoss(task, phase, settings)) for phase in phases]
        self.rates = [[group["lr"] for group in phase.optimizer.param_groups] for phase in phases]

    def run(self, number: int, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """Take step ``number`` with this worker's rows of the global batch; return detached scalars."""
        metrics: dict[str, Tensor] = {}
        size = self.context.microbatch or len(batch)
        bounds = [(start, min(start + size, len(batch))) for start in range(0, len(batch), size)]
        pieces = [(batch.rows(*piece), noise.rows(*piece)) for piece in bounds]
        for index, phase in enumerate(self.phases):
            if number % phase.every:
                continue
            self.task.requires_grad_(False)
            phase.module.requires_grad_(True)
            phase.optimizer.zero_grad(set_to_none=True)
            values = self._accumulate(index, pieces)
            norm = nn.utils.clip_grad_norm_(
                phase.module.parameters(), self.settings.clip_norm or float("inf")
            )
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
            weight = (
                len(batch) * self.context.size / noise.total
            )  # workers' means are averaged: uneven shares keep their weight
            with loss_of.no_sync() if self.context.size > 1 and place < len(pieces) - 1 else nullcontext():
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
            return torch.autocast(self.context.device.type, dtype=torch.bfloat16)
        return nullcontext()


def _iterate_norms(task: Task, on: bool) -> None:
    """Whether spectral norms take a power iteration when they are used: with the first piece of a batch, as with a whole one."""
    for module in task.modules():
        if isinstance(module, ParametrizationList):
            module.train(on)
