"""One training step. Each phase takes a forward pass, a backward pass and an optimizer step."""

from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from pipeline.core.checkpoint import with_prefix
from pipeline.core.distributed import DistributedContext
from pipeline.core.lr_schedule import learning_rate_factor
from pipeline.core.noise import Noise
from pipeline.core.settings import TrainingSettings
from pipeline.core.task import Batch, Phase, Task
from pipeline.errors import BadInput


class _UseParameters(torch.autograd.Function):
    """Returns the loss unchanged, as a function of all parameters with an undefined gradient.

    DistributedDataParallel waits for every parameter, but a loss need not depend on all of them: a gradient
    penalty does not depend on the last layer's bias.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        ctx.count = len(parameters)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return gradient, *[None] * ctx.count


class PhaseLoss(nn.Module):
    """The loss of one phase, as a module that DistributedDataParallel can wrap.

    Only the phase's own network is registered, so only its gradients are synchronised.
    """

    def __init__(self, task: Task, phase: Phase, settings: TrainingSettings) -> None:
        super().__init__()
        self.network = phase.module  # for DistributedDataParallel
        self.own_parameters = list(phase.module.parameters())  # a walk through all modules takes long
        self.phase, self.settings = phase.name, settings
        self._loss = task.loss
        if settings.compile:  # the noise is drawn outside of the compiled code, which its step would change
            draw = getattr(Noise._draw, "__wrapped__", Noise._draw)
            Noise._draw = torch.compiler.disable(draw)  # type: ignore[method-assign]
            self._loss = torch.compile(task.loss, dynamic=False, options={"deterministic": True})

    def forward(self, batch: Batch, noise: Noise) -> tuple[Tensor, dict[str, Tensor]]:
        loss, values = self._loss(self.phase, batch, noise)
        total = _UseParameters.apply(loss + self._penalty(), *self.own_parameters)
        return total, {"loss": loss, **values}

    def _penalty(self) -> Tensor | float:
        penalty: Tensor | float = 0.0
        if self.settings.l1 or self.settings.l2:
            for weight in self.own_parameters:
                if weight.dim() > 1:  # not biases and gains
                    l1, l2 = weight.abs().sum(), weight.square().sum()
                    penalty = penalty + self.settings.l1 * l1 + self.settings.l2 * l2
        return penalty


class Step:
    """Runs the phases of a step.

    Metrics are named ``<phase>/<quantity>``, or ``<quantity>`` if the task has only one phase.
    """

    def __init__(
        self, task: Task, phases: list[Phase], settings: TrainingSettings, context: DistributedContext
    ) -> None:
        for phase in phases:
            if phase.first > settings.num_steps:
                model = type(task).__module__.rpartition(".")[2]
                what = f"the phase {phase.name} begins at step {phase.first}, after the end of the training"
                remedy = f"let it begin earlier, or set num_steps, which is {settings.num_steps}, higher"
                raise BadInput(what, where=f"{model}.training.num_steps", remedy=remedy)
        self.task, self.phases, self.settings, self.context = task, phases, settings, context
        self.losses = [context.wrap(PhaseLoss(task, phase, settings)) for phase in phases]
        scaler = partial(torch.amp.GradScaler, context.device.type, enabled=settings.precision == "float16")
        self.scalers = {phase.name: scaler() for phase in phases}  # they change nothing if not enabled
        self.rates = [[group["lr"] for group in phase.optimizer.param_groups] for phase in phases]
        self._parameters = [list(phase.module.parameters()) for phase in phases]
        self._all_parameters = list(task.parameters())
        self._spectral_norms = [
            module for module in task.modules() if isinstance(module, ParametrizationList) and module.training
        ]

    def run(self, number: int, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """Run step ``number`` on this worker's rows of the global batch. Returns detached scalars."""
        metrics: dict[str, Tensor] = {}
        size = self.context.microbatch or len(batch)
        bounds = [(start, min(start + size, len(batch))) for start in range(0, len(batch), size)]
        pieces = [(batch.rows(*piece), noise.rows(*piece)) for piece in bounds]
        for index, phase in enumerate(self.phases):
            if not phase.num_runs(number - 1, number):
                continue
            for parameter in self._all_parameters:
                parameter.requires_grad_(False)
            for parameter in self._parameters[index]:
                parameter.requires_grad_(True)
                parameter.grad = None
            values = self._accumulate(index, pieces)
            for parameter in self._parameters[index]:
                if parameter.grad is None:  # DistributedDataParallel sets these to zero, too
                    parameter.grad = torch.zeros_like(parameter)
            self._set_rate(index, number)
            self._update(phase, values)
            prefix = f"{phase.name}/" if len(self.phases) > 1 else ""
            metrics.update({f"{prefix}{name}": value for name, value in values.items()})
        return metrics

    def state_dict(self) -> dict[str, Tensor]:
        """By phase, the loss scale of float16 and the number of steps since it changed; else empty."""
        states = {name: scaler.state_dict() for name, scaler in self.scalers.items() if scaler.is_enabled()}
        pairs = {name: [state["scale"], state["_growth_tracker"]] for name, state in states.items()}
        return {f"scaler/{name}": torch.tensor(pair, dtype=torch.float64) for name, pair in pairs.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load what :meth:`state_dict` returned; ``state`` may hold more."""
        for name, pair in with_prefix("scaler/", state).items():
            scale, unchanged = pair.tolist()
            values = {"scale": scale, "_growth_tracker": int(unchanged)}
            self.scalers[name].load_state_dict(self.scalers[name].state_dict() | values)

    def _update(self, phase: Phase, values: dict[str, Tensor]) -> None:
        """Clip the gradient, take the optimizer's step, and add to the metrics ``values``.

        With float16 the step is skipped, and its metrics are NaN, if the gradient is not finite. All workers
        have the same gradient, so all of them skip the step and have the same loss scale. A NaN of a step
        that is taken becomes infinite.
        """
        scaler, max_norm = self.scalers[phase.name], self.settings.clip_norm or float("inf")
        scaler.unscale_(phase.optimizer)
        parameters = [parameter for group in phase.optimizer.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, max_norm).detach()
        scaler.step(phase.optimizer)
        scaler.update()
        values["gradient_norm"] = norm
        if scaler.is_enabled():
            for name, value in values.items():
                values[name] = value.nan_to_num(torch.inf, torch.inf, -torch.inf)
                values[name] = values[name].where(norm.isfinite(), torch.nan)
            values["skipped_fraction"] = 1 - norm.isfinite().float()
            values["loss_scale"] = scaler.scale(torch.ones_like(norm))

    def _accumulate(self, index: int, pieces: list[tuple[Batch, Noise]]) -> dict[str, Tensor]:
        """Accumulate the gradients of the pieces, and return the weighted sums of their metrics.

        Workers synchronise their gradients in the last piece's backward pass.
        """
        compute_loss, sums = cast(Any, self.losses[index]), dict[str, Tensor]()
        phase = self.phases[index].name
        for number, (batch, noise) in enumerate(pieces):
            if number == 1:
                self._set_power_iteration(False)
            # DDP averages over workers. With this weight that gives the mean over the global batch.
            weight = len(batch) * self.context.size / noise.total
            last = number == len(pieces) - 1
            with nullcontext() if last or self.context.size == 1 else compute_loss.no_sync():
                with self._precision():
                    loss, values = compute_loss(batch, noise.at(phase))
                self.scalers[phase].scale(loss * weight).backward()
            for name, value in values.items():
                part = value.detach().float() * weight
                sums[name] = sums[name] + part if name in sums else part
        if len(pieces) > 1:
            self._set_power_iteration(True)
        return sums

    def _set_power_iteration(self, on: bool) -> None:
        """Turn the power iteration of spectral norms on or off: it runs once for each batch, not piece."""
        for module in self._spectral_norms:
            module.train(on)

    def _set_rate(self, index: int, number: int) -> None:
        phase, num_steps = self.phases[index], self.settings.num_steps
        if phase.schedule:
            length = (phase.last or num_steps) - phase.first + 1
            factor = learning_rate_factor(phase.schedule, number - phase.first + 1, length)
        else:
            factor = learning_rate_factor(self.settings.schedule, number, num_steps)
        for group, rate in zip(phase.optimizer.param_groups, self.rates[index], strict=True):
            group["lr"] = rate * factor

    def _precision(self) -> torch.autocast:
        dtype = getattr(torch, self.settings.precision)
        return torch.autocast(self.context.device.type, dtype, enabled=dtype != torch.float32)
