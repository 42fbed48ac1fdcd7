"""Training with differential privacy: DP-SGD (Abadi et al. 2016, "Deep Learning with Differential Privacy").

The gradient of each example is clipped to a norm, and normal noise is added to the sum of the gradients. An
example takes part at most once in an epoch, so an epoch is a Gaussian mechanism, and K of them together are
one with mu = sqrt(K) / noise multiplier (Dong et al. 2022, "Gaussian Differential Privacy", corollary 3.3),
whatever the size of the batches. Its epsilon is exact: Balle & Wang 2018, "Improving the Gaussian Mechanism".
Neighbouring data sets differ in one example, which is left out: its gradient is then 0 (Kairouz et al. 2021).

The noise must not be known to others, so it depends on a key, and not on the seed of the training.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from pipeline.core.batch import Batch
from pipeline.core.noise import Noise
from pipeline.core.settings import TrainingSettings
from pipeline.core.task import Task
from pipeline.errors import BadInput
from pipeline.params import Section

CHUNK = 64  # examples whose gradients are in memory at once

Loss = Callable[[Batch, Noise], tuple[Tensor, Mapping[str, Tensor]]]


class PrivacySettings(Section):
    """A training with (``epsilon``, ``delta``)-differential privacy for each training image."""

    epsilon: float = Field(ge=1e-3, le=100)
    delta: float = Field(1e-5, ge=1e-12, lt=1)  # less than 1 / number of training images
    max_grad_norm: float = Field(1.0, gt=0)  # to which the gradient of each image is clipped


def delta_of(mu: float, epsilon: float) -> float:
    """The delta of a Gaussian mechanism whose noise is 1 / ``mu`` times its sensitivity."""
    normal = lambda value: math.erfc(-value / math.sqrt(2)) / 2  # the cumulative distribution function
    return normal(mu / 2 - epsilon / mu) - math.exp(epsilon) * normal(-mu / 2 - epsilon / mu)


def mu_of(epsilon: float, delta: float) -> float:
    """The largest mu of a Gaussian mechanism that is (``epsilon``, ``delta``)-differentially private."""
    low, high = 1e-6, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of(middle, epsilon) <= delta else (low, middle)
    return low


def noise_multiplier(settings: PrivacySettings, training: TrainingSettings, num_images: int) -> float:
    """The standard deviation of the noise, divided by ``max_grad_norm``."""
    num_epochs = math.ceil(training.num_steps / max(1, num_images // training.batch_size))
    return math.sqrt(num_epochs) / mu_of(settings.epsilon, settings.delta)


def require_private(training: TrainingSettings, where: str) -> None:
    """Raise ``BadInput`` if a setting of the training contradicts privacy."""
    wrong = {
        "sampling: balanced uses an image several times in an epoch": training.sampling == "balanced",
        "keep: best chooses by images without noise": training.keep == "best",
        "patience ends the training by images without noise": training.patience is not None,
        "precision: float16 skips steps by gradients without noise": training.precision == "float16",
        "compile: true has no gradient of each image": training.compile,
    }
    if faults := [fault for fault, applies in wrong.items() if applies]:
        remedy = "change these settings, or remove privacy from those of the model"
        raise BadInput(f"does not fit privacy: {'; '.join(faults)}", where=where, remedy=remedy)


def secret_normal(key: bytes, step: int, count: int) -> Tensor:
    """``count`` standard normal numbers, float64: a function of ``key``, unknown without it.

    SHAKE-256 is the generator, because PyTorch's has only 2^32 seeds, and Box & Muller 1958 the method.
    """
    num_pairs = (count + 1) // 2
    stream = hashlib.shake_256(key + step.to_bytes(8, "little")).digest(16 * num_pairs)
    integers = torch.from_numpy((np.frombuffer(stream, "<u8") >> 11).astype(np.float64))
    radius, angle = ((integers + 0.5) * 2.0**-53).view(2, num_pairs)
    pairs = torch.polar((-2 * radius.log()).sqrt(), 2 * math.pi * angle)
    return torch.view_as_real(pairs).flatten()[:count]


@dataclass(frozen=True, kw_only=True)
class _NoiseOfOne(Noise):
    """The noise of the row ``index`` (), for a function that ``vmap`` calls with all indices at once."""

    index: Tensor

    def _draw(self, name: str, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        return super()._draw(name, draw).index_select(0, self.index.view(1))


class _Call(nn.Module):
    """A loss of ``task`` as a module, for ``functional_call``."""

    def __init__(self, task: Task, loss: Loss) -> None:
        super().__init__()
        self.task, self.loss = task, loss

    def forward(self, batch: Batch, noise: Noise) -> tuple[Tensor, Mapping[str, Tensor]]:
        return self.loss(batch, noise)


class PrivateLoss(nn.Module):
    """Makes the loss of a task private. :meth:`begin` must be called before the training.

    A checkpoint has the SHA-256 of the key. To load one with another key raises ``BadInput``.
    """

    key_sha256: Tensor  # (32,)

    def __init__(self, settings: PrivacySettings) -> None:
        super().__init__()
        self.settings, self.key, self.deviation = settings, b"", 0.0
        self.register_buffer("key_sha256", torch.zeros(32, dtype=torch.uint8))

    def begin(self, training: TrainingSettings, num_images: int, key: bytes) -> float:
        """Prepare a training whose noise is from ``key``. Returns the noise multiplier.

        Raises ``BadInput`` if a setting of the training contradicts privacy, or delta is too large.
        """
        require_private(training, "params.yaml: training")
        if self.settings.delta * num_images >= 1:
            what = f"is not less than 1 / {num_images}, the number of training images"
            raise BadInput(what, where="params.yaml: model.privacy.delta", remedy="use a smaller one")
        multiplier = noise_multiplier(self.settings, training, num_images)
        self.key, self.deviation = key, multiplier * self.settings.max_grad_norm
        self.key_sha256.copy_(torch.tensor(list(hashlib.sha256(key).digest())))
        return multiplier

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *others: Any) -> None:
        saved = state.get(f"{prefix}key_sha256", self.key_sha256)
        if self.key and not torch.equal(saved.cpu(), self.key_sha256.cpu()):
            remedy = "set DARKROOM_PRIVACY_SECRET to the first one, or delete its folder to begin again"
            raise BadInput("the training began with another secret", where="checkpoint", remedy=remedy)
        super()._load_from_state_dict(state, prefix, *others)

    def forward(self, task: Task, loss: Loss, batch: Batch, noise: Noise) -> tuple[Tensor, dict[str, Tensor]]:
        """The ``loss`` of the batch and its metrics. Its gradient is the private one, for all parameters.

        The noise for the whole batch is added by the worker that has the first row.
        """
        assert self.key, "begin() was not called"
        call, num_rows = _Call(task, loss), len(batch)
        parameters = dict(call.named_parameters())
        sums = {name: torch.zeros_like(value) for name, value in parameters.items()}
        totals: dict[str, Tensor] = {}
        for start in range(0, num_rows, CHUNK):
            rows = (start, min(start + CHUNK, num_rows))
            gradients, values = _of_each(call, parameters, batch.rows(*rows), noise.rows(*rows))
            norms = torch.stack(
                [value.reshape(len(value), -1).norm(dim=1) for value in gradients.values()]
            ).norm(dim=0)
            values["clipped_fraction"] = (norms > self.settings.max_grad_norm).float()
            factors = self.settings.max_grad_norm / norms.clamp_min(self.settings.max_grad_norm)
            for name, value in gradients.items():
                # No matrix product: autocast and TF32 round it, and a sum of rounded gradients has no bound.
                sums[name] += (factors.view(-1, *[1] * (value.dim() - 1)) * value).sum(0)
            for name, value in values.items():
                totals[name] = totals[name] + value.sum() if name in totals else value.sum()
        if noise.start == 0:
            self._add_noise(sums, noise.step)
        means = {name: total / num_rows for name, total in totals.items()}
        terms = [(sums[name] / num_rows * (p - p.detach())).sum() for name, p in parameters.items()]
        return torch.stack([means.pop("loss"), *terms]).sum(), means  # the terms are 0 and have the gradients

    @torch.no_grad()
    def _add_noise(self, sums: dict[str, Tensor], step: int) -> None:
        # The sum is rounded from float64, so that its last bits do not show the gradient (Mironov 2012).
        device = next(iter(sums.values())).device
        exact = torch.float32 if device.type == "mps" else torch.float64
        numbers = secret_normal(self.key, step, sum(value.numel() for value in sums.values()))
        parts = (numbers * self.deviation).to(device, exact).split([value.numel() for value in sums.values()])
        for value, part in zip(sums.values(), parts, strict=True):
            value.copy_(value.to(exact) + part.view(value.shape))


def _of_each(
    call: _Call, parameters: Mapping[str, Tensor], batch: Batch, noise: Noise
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The gradient of the loss of each example, (N, ...) by parameter, and its metrics, (N,)."""

    def loss_of(
        parameters: dict[str, Tensor], example: dict[str, Tensor], index: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        one = Batch({name: value[None] for name, value in example.items()})
        own_noise = _NoiseOfOne(**vars(noise), index=index)
        loss, values = functional_call(call, parameters, (one, own_noise))
        return loss, {**values, "loss": loss}

    given = {name: value.detach() for name, value in parameters.items()}
    # The numbers that are drawn are those of all rows, the same in each call.
    compute = vmap(grad(loss_of, has_aux=True), in_dims=(None, 0, 0), randomness="same")
    return compute(given, dict(batch.fields), torch.arange(len(batch), device=noise.device))
