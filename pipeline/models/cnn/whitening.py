"""A first layer that whitens the patches of images (Coates & Ng 2012; hlb-CIFAR10)."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.dataset import Split

SIDE = 2  # of a patch, in pixels
MAX_IMAGES = 5000  # from which the filters are computed
CHUNK = 100  # images whose patches are in memory at once
SMALLEST = 5e-4  # added to the variances: directions without variance are not amplified


class Whitening(nn.Module):
    """The principal components of 2 x 2 patches and their negatives, each scaled to the variance 1.

    The filters are computed from the training images and are not trained; the biases are. Until :meth:`fit`
    is called the filters are 0.
    """

    weight: Tensor  # (filters, channels, 2, 2)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.filters = 2 * channels * SIDE**2
        self.register_buffer("weight", torch.zeros(self.filters, channels, SIDE, SIDE))
        self.bias = nn.Parameter(torch.zeros(self.filters))

    def forward(self, images: Tensor) -> Tensor:
        return F.conv2d(images, self.weight, self.bias)

    @torch.no_grad()
    def fit(self, split: Split) -> None:
        """Compute the filters, unless they are those of a trained model (``initial_weights``)."""
        if self.weight.any():
            return
        rows = np.unique(np.linspace(0, len(split) - 1, MAX_IMAGES).astype(np.int64))
        count, size = 0, self.filters // 2
        sums, products = torch.zeros(size).double(), torch.zeros(size, size).double()
        for chunk in np.array_split(rows, -(-len(rows) // CHUNK)):
            patches = F.unfold(split.batch(chunk).images, SIDE).transpose(1, 2).flatten(0, 1).double()
            count += len(patches)
            sums += patches.sum(0)
            products += patches.T @ patches
        mean = sums / count
        variances, components = torch.linalg.eigh(products / count - mean.outer(mean))
        filters = components.T / (variances.clamp_min(0) + SMALLEST).sqrt()[:, None]
        filters = torch.cat([filters, -filters])
        self.weight.copy_(filters.view_as(self.weight))
        self.bias.copy_(-filters @ mean)
