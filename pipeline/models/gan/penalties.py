"""Regularisers of the two networks."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def input_gradients(logits: Tensor, images: Tensor) -> Tensor:
    """The gradient of each logit (N,) with respect to its image, (N, D); it can be differentiated."""
    (gradients,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradients.flatten(1)


def gradient_penalty(gradients: Tensor) -> Tensor:
    """(N, D) -> (N,): (|gradient| - 1)^2, at mixed images (WGAN-GP, Gulrajani et al. 2017)."""
    return (gradients.norm(dim=1) - 1).square()


def zero_centred_penalty(gradients: Tensor) -> Tensor:
    """(N, D) -> (N,): |gradient|^2 / 2, at real (R1) or generated images (R2; Mescheder et al. 2018)."""
    return gradients.square().sum(1) / 2


def path_lengths(images: Tensor, codes: Tensor, directions: Tensor) -> Tensor:
    """The lengths (N,) of J^T y, for the Jacobian J of images by codes (N, L) and directions y.

    ``directions`` are standard normal, with the shape of the images (Karras et al. 2020).
    """
    products = (images * directions).sum() / images.shape[-1]
    (gradients,) = torch.autograd.grad(products, codes, create_graph=True)
    return gradients.norm(dim=1)


def clip_weights(optimizer: Optimizer, limit: float) -> None:
    """Clip the parameters to [-limit, limit] after each step (Arjovsky et al. 2017)."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def clip(*_: object) -> None:
        with torch.no_grad():
            torch._foreach_clamp_min_(parameters, -limit)
            torch._foreach_clamp_max_(parameters, limit)

    optimizer.register_step_post_hook(clip)


class HistoricalAverage(nn.Module):
    """Squared distance of a network's parameters from their mean over the steps (Salimans et al. 2016).

    The mean is a buffer. It depends on steps and parameters only, so it is equal on all workers; a second
    piece of the same batch does not change it.
    """

    mean: Tensor
    count: Tensor
    last_step: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        size = sum(parameter.numel() for parameter in network.parameters())
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("last_step", torch.full((), -1))

    def forward(self, network: nn.Module, step: Tensor) -> Tensor:
        """The squared distance; in a new ``step`` (a scalar) the parameters are first added to the mean."""
        flat = torch.cat([parameter.flatten() for parameter in network.parameters()])
        with torch.no_grad():
            is_new = (self.last_step < step).float()
            self.count += is_new
            self.mean.lerp_(flat.detach(), is_new / self.count)
            self.last_step.copy_(step)
        return (flat - self.mean).square().sum()
