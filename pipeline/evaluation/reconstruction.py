"""Errors between images, pixel by pixel. Images are (N, C, H, W) in [0, 1].

SSIM: Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity".
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.core.noise import Noise

SMALLEST_ERROR = 1e-10  # so that an exact copy has 100 dB, not infinity


def squared_error(images: Tensor, others: Tensor) -> Tensor:
    """Mean squared error of each image's pixels, (N,), float64."""
    return (images.double() - others.double()).square().mean(dim=(1, 2, 3))


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, (N,), in dB; at most 100."""
    return -10 * squared_error(images, others).clamp(min=SMALLEST_ERROR).log10()  # 10 log10(1^2 / MSE)


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Structural similarity of each image, (N,), at most 1, averaged over channels.

    The Gaussian window has 11 pixels (sigma 1.5), or the largest odd number of pixels that fits.
    """
    first, second = images.double(), others.double()
    size = min(11, (min(images.shape[-2:]) - 1) // 2 * 2 + 1)
    offsets = torch.arange(size, dtype=torch.float64, device=images.device) - size // 2
    line = torch.exp(-offsets.square() / (2 * 1.5**2))
    line = line / line.sum()
    window = torch.outer(line, line).expand(images.shape[1], 1, size, size)

    def local(values: Tensor) -> Tensor:
        return F.conv2d(values, window, groups=images.shape[1])

    mean1, mean2 = local(first), local(second)
    variance1, variance2 = local(first * first) - mean1.square(), local(second * second) - mean2.square()
    covariance = local(first * second) - mean1 * mean2
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean1 * mean2 + c1) / (mean1.square() + mean2.square() + c1)
    structure = (2 * covariance + c2) / (variance1 + variance2 + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def damaged(images: Tensor, sigma: float, noise: Noise) -> dict[str, Tensor]:
    """Damaged images by the name of the restoration: with Gaussian noise; with a grey middle square."""
    noisy = (images + sigma * noise.normal("damage", *images.shape[1:])).clamp(0, 1)
    height, width = images.shape[-2:]
    masked = images.clone()
    masked[..., height // 4 : height - height // 4, width // 4 : width - width // 4] = 0.5
    return {"denoised": noisy, "inpainted": masked}


def compression_ratio(images: Tensor, code: Tensor) -> float:
    """Bytes of an image (8 bits per value) divided by bytes of its code (D,) as float32."""
    return images[0].numel() / (4 * code[0].numel())
