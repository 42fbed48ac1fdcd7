"""Trainings that diverge: losses, gradients or weights that are not finite."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.errors import DarkroomError

if TYPE_CHECKING:  # PyTorch takes long to import
    from torch import Tensor

MIN_LOSS_SCALE = 1e-4  # it begins with 65536: about 30 steps in a row overflowed


class Diverged(DarkroomError):
    """A metric or weight is NaN or infinite, or float16 overflows however small the loss is."""


def check_finite(
    step: int, metrics: dict[str, float], window: Sequence[tuple[int, str, "Tensor"]] = ()
) -> None:
    """Raise ``Diverged`` if the training diverged. All workers have the same metrics, so all of them stop.

    ``window``: step, name and value of all that ``metrics`` has the means of, in order. The error names the
    first that is not finite: later steps and phases follow from it.
    """
    lowest = {name: MIN_LOSS_SCALE for name in metrics if name.endswith("loss_scale")}
    for name, value in metrics.items():
        if lowest.get(name, -math.inf) < value < math.inf:
            continue
        remedy = "lower the learning rate, or use precision: float32 or bfloat16"
        if name not in lowest:
            remedy = "lower the learning rate or set clip_norm in params.yaml; the last checkpoint is valid"
            skips = any(own.endswith("loss_scale") for _, own, _ in window)  # float16: skipped steps are NaN
            odd = (each for each in window if each[2].isinf() or (each[2].isnan() and not skips))
            step, name, value = next(odd, (step, name, value))  # type: ignore[assignment]
        what = f"the training diverged: {name} is {float(value):.3g} at step {step}"
        raise Diverged(what, where="params.yaml", remedy=remedy)
