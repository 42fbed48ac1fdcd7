"""Find out whether a trained generator is class-conditional."""

import torch

from pipeline.core.noise import Noise
from pipeline.core.task import Task


def uses_labels(task: Task) -> bool:
    """Whether ``task.generate`` depends on the label; False for a task that does not generate.

    One image of each class is generated from the same noise and compared with the first.
    """

    def draw(label: int) -> torch.Tensor | None:
        noise = Noise.whole(0, 1, "labels", device=task.device)
        return task.generate(torch.full((1,), label, device=task.device), 1, noise)

    with torch.no_grad():
        first = draw(0)
        others = (draw(label) for label in range(1, task.spec.classes))
        return first is not None and any(
            image is not None and not torch.equal(first, image) for image in others
        )
