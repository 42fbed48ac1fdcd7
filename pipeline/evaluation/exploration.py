"""Pictures of a generator's latents: interpolations, traversals, mixed styles.

Latents of models that encode images are called codes here. Codes are interpolated linearly; normally
distributed latents spherically (White 2016), because nearly all of them have the same norm. Traversals:
Higgins et al. 2017. Style mixing: Karras et al. 2019.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.core.noise import Noise
from pipeline.core.task import Task

STEPS = 9  # images from one end of an interpolation to the other
DEVIATIONS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
MOST_ROWS = 8
MOST_SEARCHED = 256  # latent dimensions among which the most informative ones are searched
NUM_DRAWS = 64  # latents of a class, for their mean and deviation


@dataclass(frozen=True)
class Sheet:
    """Images (R, K, C, H, W), with names of rows and columns."""

    images: Tensor
    rows: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Latents:
    """The latents of ``task``, which can decode. ``encodes``: they are codes of images.

    ``noise(purpose, count)`` gives random numbers.
    """

    task: Task
    encodes: bool
    noise: Callable[[str, int], Noise]

    def draw(self, labels: Tensor, purpose: str) -> Tensor:
        """Random latents (N, L) of the classes ``labels`` (N,)."""
        noise = self.noise(purpose, len(labels))
        args = (len(labels), noise, labels) if self.encodes else (len(labels), noise)
        return _known(self.task.latents(*args))

    def decode(self, latents: Tensor, labels: Tensor) -> Tensor:
        """The images of latents (N, L)."""
        return _known(self.task.decode(latents, labels))

    def truncated(self, latents: Tensor, means: Tensor, labels: Tensor, share: float) -> Tensor:
        """The images of ``latents`` (N, L), whose distance from ``means`` is multiplied by ``share``.

        A model with styles scales the distance of its styles from their mean instead.
        """
        if self.task.num_levels:
            decode: Any = self.task.decode
            return decode(latents, labels, truncation=share)
        return self.decode(torch.lerp(means, latents, share), labels)

    def means(self, labels: Tensor) -> Tensor:
        """The mean latent (N, L) of each of the classes ``labels`` (N,), or of all if not ``encodes``."""
        classes = torch.arange(self.task.spec.classes if self.encodes else 1, device=self.task.device)
        draws = self.draw(classes.repeat_interleave(NUM_DRAWS), "means")
        means = draws.unflatten(0, (len(classes), NUM_DRAWS)).mean(1)
        return means[labels if self.encodes else torch.zeros_like(labels)]


def interpolations(latents: Latents, labels: Tensor, ends: tuple[Tensor, Tensor] | None = None) -> Sheet:
    """A row for each of ``labels`` (N,): images from one random latent of this class to another one.

    ``ends``: real images (N, C, H, W), between whose codes it goes instead; they are shown too.
    """
    if ends is None:
        first, second = (latents.draw(labels, f"end {end}") for end in (1, 2))
    else:
        first, second = (_known(latents.task.encode(images)) for images in ends)
    between = linear if latents.encodes else spherical
    shares = [step / (STEPS - 1) for step in range(STEPS)]
    columns = [latents.decode(between(first, second, share), labels) for share in shares]
    names = [f"{share:.0%}" for share in shares]
    if ends is not None:
        columns, names = [ends[0], *columns, ends[1]], ["from", *names, "to"]
    return Sheet(torch.stack(columns, 1), columns=names)


def linear(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Codes (N, L) at ``share`` of the way."""
    return torch.lerp(first, second, share)


def spherical(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Latents (N, L) at ``share`` of the way from ``first`` to ``second``.

    Their direction moves along the arc (Shoemake 1985), their norm linearly. Between parallel or opposite
    latents, which have no arc or no single one, the way is straight.
    """
    norms = [each.norm(dim=1, keepdim=True).clamp(min=1e-12) for each in (first, second)]
    units = first / norms[0], second / norms[1]
    angle = (units[0] * units[1]).sum(1, keepdim=True).clamp(-1, 1).arccos()
    sines = ((1 - share) * angle).sin(), (share * angle).sin()
    arc = (sines[0] * units[0] + sines[1] * units[1]) / angle.sin()
    straight = angle.sin() < 1e-3
    return torch.where(
        straight, torch.lerp(first, second, share), arc * torch.lerp(norms[0], norms[1], share)
    )


def traversals(latents: Latents, label: int) -> Sheet:
    """A row for each of the most informative dimensions: one image with this latent at -3 to 3 deviations.

    Informative are those that change the pixels most. Mean and deviation are those of the class.
    """
    labels = torch.full((NUM_DRAWS,), label, device=latents.task.device)
    draws = latents.draw(labels, "traversal")
    base, means, deviations = draws[0], draws.mean(0), draws.std(0)

    def images(dimensions: list[int], steps: tuple[float, ...]) -> Tensor:
        moved = base.repeat(len(dimensions), len(steps), 1)
        for row, dimension in enumerate(dimensions):
            for column, step in enumerate(steps):
                moved[row, column, dimension] = means[dimension] + step * deviations[dimension]
        flat = moved.flatten(0, 1)
        return latents.decode(flat, labels[:1].expand(len(flat))).unflatten(0, moved.shape[:2])

    searched = images(list(range(min(len(base), MOST_SEARCHED))), (-2.0, 2.0))
    changes = (searched[:, 1] - searched[:, 0]).square().flatten(1).mean(1)
    chosen = changes.argsort(descending=True, stable=True)[:MOST_ROWS].tolist()
    columns = ["mean" if step == 0 else f"{step:+.0f} sd" for step in DEVIATIONS]
    return Sheet(images(chosen, DEVIATIONS), [f"latent {dimension}" for dimension in chosen], columns)


def mixing(latents: Latents, labels: Tensor) -> Sheet | None:
    """A row for each of ``labels`` (N,): two images, and between them those with both styles.

    The styles from a level on are the second image's. None if the model has no styles.
    """
    if latents.task.num_levels == 0:
        return None
    first, second = (latents.draw(labels, f"style {end}") for end in (1, 2))
    levels = range(latents.task.num_levels - 1, 0, -1)
    mixed = [_known(latents.task.mix(first, second, level, labels)) for level in levels]
    images = [latents.decode(first, labels), *mixed, latents.decode(second, labels)]
    return Sheet(torch.stack(images, 1), columns=["first", *(f"from {level}" for level in levels), "second"])


def _known(output: Tensor | None) -> Tensor:
    assert output is not None
    return output
