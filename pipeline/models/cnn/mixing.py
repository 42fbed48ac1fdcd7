"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019): two images mixed, and the loss of their labels.

The other image is a random one of the whole training split, as in the papers' definitions. It is usually
taken from the same batch, but a worker has only some of its rows: the result would depend on their number.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from pipeline.core.batch import Batch
from pipeline.core.dataset import Split
from pipeline.core.noise import Noise
from pipeline.layers.augmentation import box


def partner_reader(split: Split) -> Callable[[Noise], tuple[Batch, Noise]]:
    """A function: noise -> a random example of ``split`` for each row, and the noise that augments them.

    It is a function, and no object, so that a copy of the model for averaging does not copy the data.
    """

    @torch.compiler.disable  # which would otherwise compile again for each step
    def read(noise: Noise) -> tuple[Batch, Noise]:
        rows = replace(noise, device=torch.device("cpu")).integers("partner", len(split))
        return split.batch(rows.numpy(), noise.device), noise.at(f"{noise.phase} partner")

    return read


def mix(images: Tensor, others: Tensor, noise: Noise, mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    """Mixed images, and the share of ``images`` in each of them, (N,): the weight of their labels.

    ``mixup`` and ``cutmix`` are the parameters a of the distribution Beta(a, a) of the share, 0: off. With
    both, one of them is drawn for each image.
    """
    kept = torch.ones_like(images[:, :1])  # of the image, by pixel
    if mixup:
        kept = kept * _beta(noise, "mixup", mixup)
    if cutmix:
        side = (1 - _beta(noise, "cutmix", cutmix)).sqrt()
        outside = 1 - box(images.shape[-1], noise.uniform("box", 2), side, side)
        kept = torch.where(noise.uniform("kind", 1, 1, 1) < 0.5, kept, outside) if mixup else outside
    return others + kept * (images - others), kept.mean((1, 2, 3))  # the box may reach beyond the image


def _beta(noise: Noise, name: str, a: float) -> Tensor:
    """Numbers from Beta(a, a), (N, 1, 1, 1)."""
    first, second, radius, angle = (1 - noise.uniform(name, 4, 1, 1, 1)).unbind(1)  # in (0, 1]
    # From Beta(a + 1, a + 1), by Ulrich's formula (1984), since U^(1/a) G(a + 1) is distributed as G(a).
    narrow = (1 + (1 - radius ** (1 / (a + 0.5))).sqrt() * (2 * math.pi * angle).cos()) / 2
    return (narrow.logit() + (first.log() - second.log()) / a).sigmoid()
