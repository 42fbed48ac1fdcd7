"""What a trained model can do with labelled images."""

from collections.abc import Callable
from enum import StrEnum

import torch
from torch import Tensor

from pipeline.core.noise import Noise
from pipeline.core.task import Task
from pipeline.errors import BadInput


class Ability(StrEnum):
    """One thing that a model can do."""

    CLASSIFY = "classify"
    FEATURES = "features"  # by which images are compared
    GENERATE = "generate"
    USES_LABELS = "uses labels"  # generates images of a given class
    RECONSTRUCT = "reconstruct"
    ENCODE = "encode"
    DECODE = "decode"  # makes images of latents, or of codes


def abilities(task: Task) -> frozenset[Ability]:
    """The abilities of ``task``, found by trying its methods on one grey image of its data's shape.

    A model that learns from other data than labelled images has none, whatever it makes of that data.
    """
    try:
        shape, classes = (1, task.spec.channels, task.spec.size, task.spec.size), task.spec.classes
    except BadInput:  # the data has no images, or no labels
        return frozenset()
    image = torch.full(shape, 0.5, device=task.device)

    def draw(label: int) -> Tensor | None:
        noise = Noise.whole(0, 1, "labels", device=task.device)
        return task.generate(torch.full((1,), label, device=task.device), 1, noise)

    def decode() -> Tensor | None:
        label = torch.zeros(1, dtype=torch.int64, device=task.device)
        latents = task.latents(1, Noise.whole(0, 1, "latents", device=task.device))
        return None if latents is None else task.decode(latents, label)

    def uses_labels() -> bool:
        first = draw(0)  # the same noise and another label give another image
        others = (draw(label) for label in range(1, classes))
        return first is not None and not all(other is None or torch.equal(first, other) for other in others)

    vector = lambda output: output.dim() == 2
    tried: dict[Ability, tuple[Callable[[], Tensor | None], Callable[[Tensor], bool]]] = {
        Ability.CLASSIFY: (lambda: task.classify(image), lambda output: output.shape == (1, classes)),
        Ability.FEATURES: (lambda: task.features(image), vector),
        Ability.GENERATE: (lambda: draw(0), lambda output: output.shape == shape),
        Ability.RECONSTRUCT: (lambda: task.reconstruct(image), lambda output: output.shape == shape),
        Ability.ENCODE: (lambda: task.encode(image), vector),
        Ability.DECODE: (decode, lambda output: output.shape == shape),
    }
    with torch.no_grad():
        outputs = {ability: (method(), fits) for ability, (method, fits) in tried.items()}
        found = {name for name, (output, fits) in outputs.items() if output is not None and fits(output)}
        if Ability.GENERATE in found and uses_labels():
            found.add(Ability.USES_LABELS)
    return frozenset(found)
