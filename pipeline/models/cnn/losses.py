"""Losses of classifiers: logits (N, classes) and labels (N,) -> a loss for each example, (N,).

The squared and Huber's error are those of the probabilities, not of the logits, so that the network still
estimates probabilities: the squared one is Brier's score (Brier 1950).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.models.cnn.settings import CnnConfig


def cross_entropy(logits: Tensor, labels: Tensor, config: CnnConfig) -> Tensor:
    """-log p(y | x)."""
    return F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing, reduction="none")


def mse(logits: Tensor, labels: Tensor, config: CnnConfig) -> Tensor:
    """sum_c (p_c - y_c)^2."""
    return (logits.softmax(1) - _targets(logits, labels, config)).square().sum(1)


def huber(logits: Tensor, labels: Tensor, config: CnnConfig) -> Tensor:
    """Huber 1964, summed over the classes: e^2 / 2 up to delta, then linear."""
    targets, delta = _targets(logits, labels, config), config.huber_delta
    return F.huber_loss(logits.softmax(1), targets, delta=delta, reduction="none").sum(1)


def focal(logits: Tensor, labels: Tensor, config: CnnConfig) -> Tensor:
    """-(1 - p_y)^gamma log p_y (Lin et al. 2017)."""
    log_p = -F.cross_entropy(logits, labels, reduction="none")
    return -((1 - log_p.exp()).clamp_min(0) ** config.focal_gamma) * log_p


def _targets(logits: Tensor, labels: Tensor, config: CnnConfig) -> Tensor:
    """One-hot labels, smoothed as by PyTorch's cross-entropy."""
    classes, smoothing = logits.shape[1], config.label_smoothing
    one_hot = labels[:, None] == torch.arange(classes, device=labels.device)
    return one_hot * (1 - smoothing) + smoothing / classes


LOSSES: dict[str, Callable[[Tensor, Tensor, CnnConfig], Tensor]] = {
    "cross_entropy": cross_entropy,
    "mse": mse,
    "huber": huber,
    "focal": focal,
}
