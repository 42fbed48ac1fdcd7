"""What a trained model can do with examples of its data."""

from collections.abc import Callable
from enum import StrEnum

import torch
from torch import Tensor

from pipeline.core.noise import Noise
from pipeline.core.task import Task


class Ability(StrEnum):
    """One thing that a model can do."""

    CLASSIFY = "classify"
    FEATURES = "features"  # by which images are compared
    GENERATE = "generate"
    USES_LABELS = "uses labels"  # generates images of a given class
    RECONSTRUCT = "reconstruct"
    ENCODE = "encode"
    DECODE = "decode"  # makes images of latents, or of codes
    COMPLETE = "complete"  # draws the missing part of an image
    SEGMENT = "segment"  # labels the pixels of an image
    FORECAST = "forecast"  # predicts the next frames of a clip


def abilities(task: Task) -> frozenset[Ability]:
    """The abilities of ``task``, found by trying its methods on one grey example of its data.

    Which are tried depends on the fields of the data: labelled images, images with a mask, or clips.
    """
    fields, found = task.spec.fields, dict[Ability, bool]()
    with torch.no_grad():
        if {"image", "label"} <= fields.keys():
            found |= _of_labelled_images(task)
        if {"image", "mask"} <= fields.keys():
            _, height, width = fields["image"].shape
            logits = task.segment(_grey(task, fields["image"].shape))
            shape = (1, fields["mask"].num_values, height, width)
            found[Ability.SEGMENT] = logits is not None and logits.shape == shape
        if "clip" in fields:
            frame = _grey(task, (1, *fields["clip"].shape[1:]))
            following = task.forecast(frame, 1)
            found[Ability.FORECAST] = following is not None and following.shape == frame.shape
    return frozenset(ability for ability, is_found in found.items() if is_found)


def _grey(task: Task, shape: tuple[int, ...]) -> Tensor:
    return torch.full((1, *shape), 0.5, device=task.device)


def _of_labelled_images(task: Task) -> dict[Ability, bool]:
    image, classes = _grey(task, task.spec["image"].shape), task.spec.classes

    def draw(label: int) -> Tensor | None:
        noise = Noise.whole(0, 1, "labels", device=task.device)
        return task.generate(torch.full((1,), label, device=task.device), 1, noise)

    def decode() -> Tensor | None:
        label = torch.zeros(1, dtype=torch.int64, device=task.device)
        latents = task.latents(1, Noise.whole(0, 1, "latents", device=task.device))
        return None if latents is None else task.decode(latents, label)

    def complete() -> Tensor | None:
        noise = Noise.whole(0, 1, "complete", device=task.device)
        return task.complete(image, torch.zeros_like(image[:, :1]), noise)

    def uses_labels() -> bool:
        if not getattr(task.config, "conditional", True):
            return False  # without drawing an image of each class
        first = draw(0)  # the same noise and another label give another image
        others = (draw(label) for label in range(1, classes))
        return first is not None and not all(other is None or torch.equal(first, other) for other in others)

    vector = lambda output: output.dim() == 2
    is_image = lambda output: output.shape == image.shape
    tried: dict[Ability, tuple[Callable[[], Tensor | None], Callable[[Tensor], bool]]] = {
        Ability.CLASSIFY: (lambda: task.classify(image), lambda output: output.shape == (1, classes)),
        Ability.FEATURES: (lambda: task.features(image), vector),
        Ability.GENERATE: (lambda: draw(0), is_image),
        Ability.RECONSTRUCT: (lambda: task.reconstruct(image), is_image),
        Ability.ENCODE: (lambda: task.encode(image), vector),
        Ability.DECODE: (decode, is_image),
        Ability.COMPLETE: (complete, is_image),
    }
    outputs = {ability: (method(), fits) for ability, (method, fits) in tried.items()}
    found = {name: output is not None and fits(output) for name, (output, fits) in outputs.items()}
    return found | {Ability.USES_LABELS: found[Ability.GENERATE] and uses_labels()}
