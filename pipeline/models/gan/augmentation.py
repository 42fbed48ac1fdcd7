"""Differentiable augmentation of what the discriminator sees (Zhao et al. 2020), fixed or adaptive."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from pipeline.core.noise import Noise
from pipeline.layers.augmentation import flip, jitter
from pipeline.models.gan.settings import GanConfig


class AdaptiveProbability(nn.Module):
    """The probability of each augmentation, adapted to over-fitting (ADA, Karras et al. 2020).

    It rises by a fixed step while the mean sign of the logits of real training images is above a target, and
    falls while it is below. It is a parameter, and :meth:`loss` a loss whose gradient has that sign: so it is
    part of checkpoints, and the mean is over all workers. The optimizer must take steps of a fixed size.
    """

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))

    def loss(self, logits: Tensor, target: float) -> Tensor:
        """``logits`` (N,) are those of augmented real images, positive for real ones."""
        outside = relu(-self.value) + relu(self.value - 1)  # pulls it back; |target - sign| is below 2
        return self.value * (target - logits.sign().mean()) + 4 * outside

    @property
    def probability(self) -> Tensor:
        """A scalar in [0, 1]."""
        return self.value.detach().clamp(0, 1)


def augment(
    images: Tensor, noise: Noise, config: GanConfig, index: int, probability: Tensor | None
) -> Tensor:
    """Augment images, each in its own way; ``index`` tells real and generated images of one step apart.

    With a ``probability`` each augmentation is applied to an image with this probability.
    """
    changes: dict[str, Callable[[Tensor, str], Tensor]] = {
        "flip": lambda images, name: flip(images, noise, config.flip, name),
        "jitter": lambda images, name: jitter(images, noise, config.shift, name=name),
        "color": lambda images, name: change_color(images, noise, config.color, name),
        "cutout": lambda images, name: cut_out(images, noise, config.cutout, name),
    }
    for kind, change in changes.items():
        name = f"{kind} {index}"
        changed = change(images, name)
        if probability is not None and changed is not images:
            is_used = noise.uniform(f"{name} used", 1, 1, 1) < probability
            changed = torch.where(is_used, changed, images)
        images = changed
    return images


def change_color(images: Tensor, noise: Noise, strength: float, name: str) -> Tensor:
    """Change brightness, by up to ``strength``, and contrast and saturation, by factors of 1 +- it.

    Values are not clipped: clipped pixels would have no gradient.
    """
    if strength == 0:
        return images
    drawn = strength * (noise.uniform(name, 3, 1, 1, 1) * 2 - 1)
    brightness, contrast, saturation = drawn.unbind(1)  # each (N, 1, 1, 1)
    grey = images.mean(1, keepdim=True)
    images = grey + (1 + saturation) * (images - grey)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (1 + contrast) * (images - mean) + brightness


def cut_out(images: Tensor, noise: Noise, side: float, name: str) -> Tensor:
    """Make a square grey, at a random place; its sides are the fraction ``side`` of the image's."""
    if side == 0:
        return images
    pixels = (torch.arange(images.shape[-1], device=images.device) + 0.5) / images.shape[-1]
    inside = (noise.uniform(name, 2, 1) - pixels).abs() < side / 2  # (N, 2, S): rows and columns
    covered = inside[:, 0, :, None] & inside[:, 1, None, :]
    return torch.where(covered[:, None], 0.5, images)
