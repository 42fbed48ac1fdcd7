"""Muon (Jordan et al. 2024), with the step size of AdamW (Liu et al. 2025, "Muon is Scalable").

PyTorch has a Muon for matrices alone; this one also takes filters and vectors.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn, optim

MOMENTUM = 0.95
STEP = 0.2  # root mean square of an update, of the learning rate; AdamW's updates are about as large
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5  # of the polynomial that moves singular values to 1


class Muon(optim.Optimizer):
    """Matrices and filters move by their momentum with all singular values near 1, vectors as with AdamW.

    A filter is a row. ``weight_decay`` is decoupled.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                move = _move_matrix if is_matrix(parameter) else _move_vector
                move(parameter, self.state[parameter], group["lr"], *group["betas"])


def is_matrix(parameter: Tensor) -> bool:
    """Whether it has several rows and several columns; a gain for each filter, (N, 1, 1, 1), has one."""
    return parameter.dim() > 1 and len(parameter) > 1 and parameter[0].numel() > 1


def _move_matrix(
    parameter: Tensor, state: dict[str, Tensor], rate: float, beta1: float, beta2: float
) -> None:
    gradient = parameter.grad
    assert gradient is not None
    if not state:
        state["momentum"] = torch.zeros_like(parameter)
    state["momentum"].lerp_(gradient, 1 - MOMENTUM)
    update = orthogonalised(gradient.lerp(state["momentum"], MOMENTUM).flatten(1))  # Nesterov's
    size = STEP * max(update.shape) ** 0.5
    parameter.add_(update.view(parameter.shape), alpha=-rate * size)


def _move_vector(
    parameter: Tensor, state: dict[str, Tensor], rate: float, beta1: float, beta2: float
) -> None:
    gradient = parameter.grad
    assert gradient is not None
    if not state:
        state |= {"step": torch.zeros((), device="cpu")}
        state |= {name: torch.zeros_like(parameter) for name in ("mean", "square")}
    state["step"] += 1
    number = state["step"].item()
    state["mean"].lerp_(gradient, 1 - beta1)
    state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    scale = (state["square"] / (1 - beta2**number)).sqrt_().add_(1e-8)
    parameter.addcdiv_(state["mean"], scale, value=-rate / (1 - beta1**number))


def orthogonalised(matrix: Tensor) -> Tensor:
    """About U V^T of the matrix U S V^T, bfloat16: its singular values are 0.7 to 1.2."""
    a, b, c = COEFFICIENTS
    tall = len(matrix) > matrix.shape[1]
    result = (matrix.T if tall else matrix).bfloat16()
    result = result / result.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = result @ result.T
        result = torch.addmm(result, torch.addmm(gram, gram, gram, beta=b, alpha=c), result, beta=a)
    return result.T if tall else result
