"""A variational autoencoder of the latents of another one (Dai & Wipf 2019).

The latents of images do not have the distribution of the prior. This small model learns the one that they
have, for each class, and draws latents from it. The deviation of its likelihood is learned.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.noise import Noise

WIDTH = 256  # of its two hidden layers


class SecondStage(nn.Module):
    """q(u | z, y) and p(z | u, y) of latents z (N, L), classes y and codes u (N, L)."""

    def __init__(self, size: int, classes: int) -> None:
        super().__init__()
        self.size, self.classes = size, classes
        self.encoder = _network(size + classes, 2 * size)
        self.decoder = _network(size + classes, size)
        self.log_deviation = nn.Parameter(torch.zeros(()))

    def negative_elbo(self, latents: Tensor, labels: Tensor, noise: Noise) -> Tensor:
        """An upper bound of -log p(z | y), (N,), in nats."""
        mean, log_variance = self.encoder(self._with_class(latents, labels)).float().chunk(2, 1)
        log_variance = log_variance.clamp(-20, 10)
        codes = mean + torch.exp(log_variance / 2) * noise.normal("second_stage", self.size)
        errors = (latents - self.decoder(self._with_class(codes, labels)).float()) / self.log_deviation.exp()
        reconstruction = errors.square() / 2 + self.log_deviation + math.log(2 * math.pi) / 2
        divergence = 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance)
        return (reconstruction + divergence).sum(1)

    def draw(self, labels: Tensor, noise: Noise, temperature: float) -> Tensor:
        """Latents (N, L) of classes ``labels`` (N,); ``temperature`` scales both normal distributions."""
        codes = temperature * noise.normal("second_stage", self.size)
        deviation = temperature * self.log_deviation.exp()
        return self.decoder(self._with_class(codes, labels)) + deviation * noise.normal("latent", self.size)

    def _with_class(self, values: Tensor, labels: Tensor) -> Tensor:
        return torch.cat([values, F.one_hot(labels, self.classes).to(values)], 1)


def _network(inputs: int, outputs: int) -> nn.Sequential:
    hidden = (nn.Linear(inputs, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
    return nn.Sequential(*hidden, nn.Linear(WIDTH, outputs))
