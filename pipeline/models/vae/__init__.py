"""A convolutional variational autoencoder with a prior for each class.

Kingma & Welling 2014; Higgins et al. 2017 (beta). The prior of class y is a normal distribution with a
learned mean, like the conditional prior of Sohn et al. 2015. So images of a given class can be generated, and
images can be encoded without their labels. Losses are in nats per image.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.noise import Noise
from pipeline.core.optimizers import OptimizerSettings
from pipeline.core.task import Batch, DataSpec, Phase, Task
from pipeline.layers.convolutional import Decoder, Encoder
from pipeline.params import Section


class VaeConfig(Section):
    """Encoder and decoder have ``width`` channels at full resolution; latents have ``latent_size`` values."""

    latent_size: int = Field(16, ge=1, le=4096)
    width: int = Field(32, ge=8, le=1024)
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    deviation: float = Field(0.1, gt=0)  # of the gaussian likelihood, with images in [0, 1]
    beta: float = Field(1.0, ge=0)  # weight of the KL divergence in the loss
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=2e-3)


class Vae(Task):
    """Encodes, reconstructs and generates images."""

    Config = VaeConfig

    def __init__(self, config: VaeConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.network = Network(config, spec)

    def phases(self) -> list[Phase]:
        return [Phase("vae", self.network, self.config.optimizer.build(self.network.parameters()))]

    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Mapping[str, Tensor]]:
        reconstruction, divergence = self._terms(batch, noise)
        loss = reconstruction.mean() + self.config.beta * divergence.mean()
        return loss, {"reconstruction": reconstruction.mean(), "kl": divergence.mean()}

    def evaluate(self, batch: Batch, noise: Noise) -> Mapping[str, Tensor]:
        reconstruction, divergence = self._terms(batch, noise)
        return {
            "reconstruction": reconstruction,
            "kl": divergence,
            "negative_elbo": reconstruction + divergence,
        }

    def _terms(self, batch: Batch, noise: Noise) -> tuple[Tensor, Tensor]:
        """-log p(x | z) and KL(q(z | x) || p(z | y)), each (N,), in nats."""
        mean, log_variance = self.network.encode(batch.images)
        latents = mean + torch.exp(log_variance / 2) * noise.normal("latent", self.config.latent_size)
        logits = self.network.decoder(latents).float()
        offset = mean - self.network.prior_means(batch.labels)
        divergence = 0.5 * (log_variance.exp() + offset.square() - 1 - log_variance).sum(1)
        return self._reconstruction(logits, batch.images), divergence

    def _reconstruction(self, logits: Tensor, images: Tensor) -> Tensor:
        if self.config.likelihood == "bernoulli":
            return F.binary_cross_entropy_with_logits(logits, images, reduction="none").flatten(1).sum(1)
        deviation = self.config.deviation
        squares = (torch.sigmoid(logits) - images).square().flatten(1)
        return (squares / (2 * deviation**2) + math.log(deviation * math.sqrt(2 * math.pi))).sum(1)

    def generate(self, labels: Tensor | None, count: int, noise: Noise) -> Tensor:
        return self.decode(self.latents(count, noise, labels))

    def latents(self, count: int, noise: Noise, labels: Tensor | None = None) -> Tensor:
        labels = noise.integers("label", self.spec.classes) if labels is None else labels
        return self.network.prior_means(labels) + noise.normal("latent", self.config.latent_size)

    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        return torch.sigmoid(self.network.decoder(latents))

    def encode(self, images: Tensor) -> Tensor:
        return self.network.encode(images)[0]

    def reconstruct(self, images: Tensor) -> Tensor:
        return torch.sigmoid(self.network.decoder(self.encode(images)))


class Network(nn.Module):
    """The encoder q(z | x), the decoder p(x | z) and the means of the priors p(z | y)."""

    def __init__(self, config: VaeConfig, spec: DataSpec) -> None:
        super().__init__()
        self.encoder = Encoder(spec.channels, spec.size, config.width, 2 * config.latent_size)
        self.decoder = Decoder(config.latent_size, spec.channels, spec.size, config.width)
        self.prior_means = nn.Embedding(spec.classes, config.latent_size)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z | x), each (N, L)."""
        mean, log_variance = self.encoder(images).float().chunk(2, 1)
        return mean, log_variance.clamp(-20, 10)
