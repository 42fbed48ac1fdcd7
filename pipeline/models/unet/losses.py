"""Losses of segmentation: logits (N, K, H, W) and masks (N, H, W) -> a loss for each example, (N,).

Pixels with the label 255 are ignored. ``weights`` (K,) are those of the classes, or None.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.layers.label_maps import IGNORED
from pipeline.models.unet.settings import UnetConfig


def mean_of_known(values: Tensor, masks: Tensor) -> Tensor:
    """The mean of each example's values (N, H, W) over the pixels that are not ignored; 0 without any."""
    known = masks != IGNORED
    return (values * known).sum(dim=(1, 2)) / known.sum(dim=(1, 2)).clamp_min(1)


def cross_entropy(logits: Tensor, masks: Tensor, config: UnetConfig, weights: Tensor | None) -> Tensor:
    """-log p(y | x) of each pixel, times the weight of its class."""
    losses = F.cross_entropy(logits, masks, weights, ignore_index=IGNORED, reduction="none")
    return mean_of_known(losses, masks)


def focal(logits: Tensor, masks: Tensor, config: UnetConfig, weights: Tensor | None) -> Tensor:
    """-(1 - p_y)^gamma log p_y of each pixel, times the weight of its class (Lin et al. 2017)."""
    losses = F.cross_entropy(logits, masks, ignore_index=IGNORED, reduction="none")  # -log p_y
    weighted = F.cross_entropy(logits, masks, weights, ignore_index=IGNORED, reduction="none")
    easy = (1 - (-losses).exp()).clamp_min(0) ** config.focal_gamma
    return mean_of_known(easy * weighted, masks)


def dice(logits: Tensor, masks: Tensor, config: UnetConfig, weights: Tensor | None = None) -> Tensor:
    """1 - (2 sum p t + 1) / (sum p + sum t + 1), averaged over the classes (Milletari et al. 2016).

    p are probabilities and t is 1 for the pixels of the class. The 1 makes the loss 0 for a class that is
    neither in the mask nor in the answer.
    """
    known = (masks != IGNORED)[:, None]
    probabilities = logits.softmax(1) * known
    real = masks[:, None] == torch.arange(logits.shape[1], device=masks.device)[:, None, None]
    both, ours, theirs = (each.sum(dim=(2, 3)) for each in (probabilities * real, probabilities, real))
    return (1 - (2 * both + 1) / (ours + theirs + 1)).mean(1)


def cross_entropy_and_dice(
    logits: Tensor, masks: Tensor, config: UnetConfig, weights: Tensor | None
) -> Tensor:
    """Their sum."""
    return cross_entropy(logits, masks, config, weights) + dice(logits, masks, config)


LOSSES: dict[str, Callable[[Tensor, Tensor, UnetConfig, Tensor | None], Tensor]] = {
    "cross_entropy": cross_entropy,
    "dice": dice,
    "focal": focal,
    "sum": cross_entropy_and_dice,
}
