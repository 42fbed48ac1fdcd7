"""Structural similarity, and errors between images, of each image. Images are (N, C, H, W) in [0, 1].

Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity".
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

ImageLoss = Literal["mse", "l1", "huber", "ssim"]


def image_loss(kind: ImageLoss, images: Tensor, others: Tensor, huber_delta: float) -> Tensor:
    """The error of each image, (N,): a mean over its pixels, or 1 - SSIM."""
    if kind == "ssim":
        return 1 - ssim(images, others)
    if kind == "huber":
        errors = F.huber_loss(images, others, reduction="none", delta=huber_delta)
    else:
        errors = (images - others).square() if kind == "mse" else (images - others).abs()
    return errors.flatten(1).mean(1)


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Structural similarity of each image, (N,), at most 1, averaged over channels.

    The Gaussian window has 11 pixels (sigma 1.5), or the largest odd number of pixels that fits.
    """
    with torch.autocast(images.device.type, enabled=False):  # variances are differences of close numbers
        return _ssim(images, others)


def _ssim(images: Tensor, others: Tensor) -> Tensor:
    smallest = min(images.shape[-2:])
    across, along = (_blur(side, smallest, images) for side in images.shape[-2:])

    def local(values: Tensor) -> Tensor:
        return across @ values @ along.T  # a convolution of float64 takes forty times as long

    mean1, mean2 = local(images), local(others)
    variance1, variance2 = local(images * images) - mean1.square(), local(others * others) - mean2.square()
    covariance = local(images * others) - mean1 * mean2
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean1 * mean2 + c1) / (mean1.square() + mean2.square() + c1)
    structure = (2 * covariance + c2) / (variance1 + variance2 + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _blur(side: int, smallest: int, images: Tensor) -> Tensor:
    """The matrix (side - size + 1, side) of the Gaussian window along one axis; see :func:`ssim`."""
    size = min(11, (smallest - 1) // 2 * 2 + 1)
    offsets = torch.arange(size, dtype=images.dtype, device=images.device) - size // 2
    line = torch.exp(-offsets.square() / (2 * 1.5**2))
    count = side - size + 1
    padded = F.pad(line / line.sum(), (0, count))  # its repetition, cut into rows, moves by one with each row
    return padded.repeat(count)[: count * side].view(count, side)
