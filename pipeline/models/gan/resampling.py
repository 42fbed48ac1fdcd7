"""Changes of a feature map's size that are deterministic on every device and can be differentiated twice."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def halve(maps: Tensor) -> Tensor:
    """Means of 2 x 2 pixels; an odd side is rounded up."""
    return F.avg_pool2d(maps, 2, ceil_mode=True, count_include_pad=False)


class Enlarge(nn.Module):
    """Linear interpolation of maps (N, C, before, before) to (N, C, after, after), as matrix products."""

    weights: Tensor

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        sources = ((torch.arange(after) + 0.5) * before / after - 0.5).clamp(0, before - 1)
        weights = (1 - (sources[:, None] - torch.arange(before)).abs()).clamp_min(0)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        return self.weights @ maps @ self.weights.T
