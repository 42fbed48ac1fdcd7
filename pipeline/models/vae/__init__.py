"""A variational autoencoder.

Kingma & Welling 2014; Higgins et al. 2017 (beta); Sønderby et al. 2016 (warm-up of the KL divergence);
Kingma et al. 2016 (free bits, here of each image, not of the mean over a batch, which would depend on the
number of workers); Rybkin et al. 2021 (learned deviation). The prior of class y is a normal distribution
with a learned mean, like the conditional prior of Sohn et al. 2015. So images of a given class can be
generated, and images can be encoded without their labels. Losses are in nats per image.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.core.noise import Noise
from pipeline.core.task import Batch, DataSpec, Phase, Task
from pipeline.layers.mixture import ClassMixture
from pipeline.models.vae.networks import Network
from pipeline.models.vae.second_stage import SecondStage
from pipeline.models.vae.settings import VaeConfig


class Vae(Task):
    """Encodes, reconstructs and generates images."""

    Config = VaeConfig

    def __init__(self, config: VaeConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.network, size = Network(config, spec), config.latent_size
        self.second_stage = SecondStage(size, spec.classes) if config.second_stage == "vae" else None
        mixture = config.prior == "mixture"
        self.mixture = ClassMixture(config.num_components, size, spec.classes) if mixture else None

    def phases(self) -> list[Phase]:
        config = self.config
        phases = [Phase("vae", self.network, config.optimizer.build(self.network.parameters()))]
        if self.second_stage:
            optimizer = config.second_stage_optimizer.build(self.second_stage.parameters())
            first, schedule = config.second_stage_first, config.second_stage_schedule
            phases.append(Phase("second_stage", self.second_stage, optimizer, first=first, schedule=schedule))
        return phases

    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Mapping[str, Tensor]]:
        if phase == "second_stage":
            return self._second_stage_terms(batch, noise).mean(), {}
        reconstruction, divergence = self._terms(batch, noise)
        counted = divergence.clamp_min(self.config.free_bits) if self.config.free_bits else divergence
        counted = counted.sum(1)
        if self.config.kl_warmup_steps:
            counted = counted * noise.warm_up(self.config.kl_warmup_steps)
        loss = reconstruction.mean() + self.config.beta * counted.mean()
        return loss, {"reconstruction": reconstruction.mean(), "kl": divergence.sum(1).mean()}

    def evaluate(self, batch: Batch, noise: Noise) -> Mapping[str, Tensor]:
        reconstruction, divergence = self._terms(batch, noise)
        divergence = divergence.sum(1)
        values = {
            "reconstruction": reconstruction,
            "kl": divergence,
            "negative_elbo": reconstruction + divergence,
        }
        if self.second_stage:
            values["second_stage"] = self._second_stage_terms(batch, noise)
        return values

    def log_weights(self, batch: Batch, noise: Noise, num_samples: int) -> Tensor:
        """log p(x, z | y) - log q(z | x), (N, num_samples), in nats, of so many latents z of each image.

        Their mean is the evidence lower bound; the log of the mean of their exponentials is the
        importance-weighted bound of log p(x | y) (Burda et al. 2016).
        """
        mean, log_variance = self.network.encode(batch.images)
        weights = []
        for number in range(num_samples):  # one after the other, so that memory is bounded
            normal = noise.normal(f"latent {number}", self.config.latent_size)
            latents = mean + torch.exp(log_variance / 2) * normal
            prior = -(latents - self._prior_means(batch.labels)).square().sum(1) / 2
            posterior = -(normal.square() + log_variance).sum(1) / 2  # both without log(2 pi)
            weights.append(prior - posterior - self._reconstruction(self._logits(latents), batch.images))
        return torch.stack(weights, 1)

    def _terms(self, batch: Batch, noise: Noise) -> tuple[Tensor, Tensor]:
        """-log p(x | z), (N,), and KL(q(z | x) || p(z | y)) by value of the latent, (N, L), in nats."""
        mean, log_variance = self.network.encode(batch.images)
        latents = mean + torch.exp(log_variance / 2) * noise.normal("latent", self.config.latent_size)
        offset = mean - self._prior_means(batch.labels)
        divergence = 0.5 * (log_variance.exp() + offset.square() - 1 - log_variance)
        return self._reconstruction(self._logits(latents), batch.images), divergence

    def _second_stage_terms(self, batch: Batch, noise: Noise) -> Tensor:
        assert self.second_stage
        with torch.no_grad():
            mean, log_variance = self.network.encode(batch.images)
            latents = mean + torch.exp(log_variance / 2) * noise.normal("latent", self.config.latent_size)
        return self.second_stage.negative_elbo(latents, batch.labels, noise)

    def _prior_means(self, labels: Tensor) -> Tensor | float:
        return self.network.prior_means(labels) if self.network.prior_means else 0.0

    def _logits(self, latents: Tensor) -> Tensor:
        return self.network.decoder(latents).float()

    def _reconstruction(self, logits: Tensor, images: Tensor) -> Tensor:
        if self.config.likelihood == "bernoulli":
            return F.binary_cross_entropy_with_logits(logits, images, reduction="none").flatten(1).sum(1)
        squares = (torch.sigmoid(logits) - images).square().flatten(1)
        if self.network.log_deviation is None:
            deviation = self.config.deviation
            return (squares / (2 * deviation**2) + math.log(deviation * math.sqrt(2 * math.pi))).sum(1)
        logs = self.network.log_deviation
        return (squares / (2 * torch.exp(2 * logs)) + logs + math.log(2 * math.pi) / 2).sum(1)

    @torch.no_grad()
    def on_train_end(self, batches: Iterable[Batch]) -> None:
        if self.mixture:
            pairs = [(self.encode(batch.images), batch.labels) for batch in batches]
            self.mixture.fit(*(torch.cat(parts) for parts in zip(*pairs)))

    def latents(self, count: int, noise: Noise, labels: Tensor | None = None) -> Tensor:
        """Latents (count, L) of classes ``labels`` (count,) or of random classes."""
        labels = noise.integers("label", self.spec.classes) if labels is None else labels
        temperature = self.config.temperature
        if self.second_stage:
            return self.second_stage.draw(labels, noise, temperature)
        if self.mixture and self.mixture.fitted:
            return self.mixture.draw(labels, noise, "latent", temperature)
        return self._prior_means(labels) + temperature * noise.normal("latent", self.config.latent_size)

    def generate(self, labels: Tensor | None, count: int, noise: Noise) -> Tensor:
        return self.decode(self.latents(count, noise, labels))

    def encode(self, images: Tensor) -> Tensor:
        return self.network.encode(images)[0]

    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (N, C, H, W) of ``latents`` (N, L)."""
        return torch.sigmoid(self.network.decoder(latents))

    def reconstruct(self, images: Tensor) -> Tensor:
        return self.decode(self.encode(images))
