"""A convolutional generative adversarial network, conditional on the class.

Goodfellow et al. 2014 (non-saturating loss), Lim & Ye 2017 (hinge loss), Miyato et al. 2018 (projection
discriminator; spectral normalisation, here of all layers but the last), Zhao et al. 2020 (differentiable
augmentation, here translation and mirroring), Heusel et al. 2017 (two learning rates). Weight averaging is
set by training.ema_decay.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from pipeline.core.noise import Noise
from pipeline.core.optimizers import OptimizerSettings
from pipeline.core.task import Batch, DataSpec, Phase, Task
from pipeline.layers.augmentation import flip, jitter
from pipeline.layers.convolutional import Decoder, Encoder
from pipeline.params import Section

SLOW = OptimizerSettings(kind="adam", learning_rate=4e-4, beta1=0.0, beta2=0.99)
FAST = SLOW.model_copy(update={"learning_rate": 16e-4})


class GanConfig(Section):
    """Both networks have ``width`` channels at full resolution; latents have ``latent_size`` values."""

    latent_size: int = Field(64, ge=1, le=4096)
    width: int = Field(32, ge=8, le=1024)
    adversarial_loss: Literal["non_saturating", "hinge"] = "non_saturating"
    spectral_normalisation: bool = True
    flip: float = Field(0.0, ge=0, le=0.5)  # augmentation: probability that an image is mirrored
    shift: float = Field(0.06, ge=0, le=0.5)  # augmentation: largest shift, as a fraction of the side
    discriminator_every: int = Field(1, ge=1)  # steps
    generator_every: int = Field(1, ge=1)  # steps
    generator_optimizer: OptimizerSettings = SLOW
    discriminator_optimizer: OptimizerSettings = FAST


class Gan(Task):
    """Generates images of a given class from normally distributed latents."""

    Config = GanConfig

    def __init__(self, config: GanConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.generator = Generator(config, spec)
        self.discriminator = Discriminator(config, spec)

    def phases(self) -> list[Phase]:
        config = self.config
        discriminator_optimizer = config.discriminator_optimizer.build(self.discriminator.parameters())
        generator_optimizer = config.generator_optimizer.build(self.generator.parameters())
        return [
            Phase("discriminator", self.discriminator, discriminator_optimizer, config.discriminator_every),
            Phase("generator", self.generator, generator_optimizer, config.generator_every),
        ]

    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Mapping[str, Tensor]]:
        generated = self.generator(noise.normal("latent", self.config.latent_size), batch.labels)
        if phase == "generator":
            logits = self._logits(generated, batch.labels, noise)
            if self.config.adversarial_loss == "non_saturating":
                return F.softplus(-logits).mean(), {}  # -log D(G(z))
            return -logits.mean(), {}  # -D(G(z))
        images = torch.cat([batch.images, generated.detach()])
        real, fake = self._logits(images, batch.labels.repeat(2), noise, repeats=2).chunk(2)
        if self.config.adversarial_loss == "non_saturating":
            loss = (F.softplus(-real) + F.softplus(fake)).mean()  # -log D(x) - log(1 - D(G(z)))
        else:
            loss = (F.relu(1 - real) + F.relu(1 + fake)).mean()
        return loss, {
            "real_accuracy": (real > 0).float().mean(),
            "generated_accuracy": (fake < 0).float().mean(),
        }

    def _logits(self, images: Tensor, labels: Tensor, noise: Noise, repeats: int = 1) -> Tensor:
        """The discriminator's logits of augmented images.

        ``images`` are ``repeats`` batches of the noise's size.
        """
        parts = [
            jitter(
                flip(part, noise, self.config.flip, f"flip {index}"),
                noise,
                self.config.shift,
                name=f"jitter {index}",
            )
            for index, part in enumerate(images.chunk(repeats))
        ]
        return self.discriminator(torch.cat(parts), labels).float()

    def evaluate(self, batch: Batch, noise: Noise) -> Mapping[str, Tensor]:
        generated = self.generator(noise.normal("latent", self.config.latent_size), batch.labels)
        return {
            "real_accuracy": (self.discriminator(batch.images, batch.labels) > 0).float(),
            "generated_accuracy": (self.discriminator(generated, batch.labels) < 0).float(),
        }

    def generate(self, labels: Tensor | None, count: int, noise: Noise) -> Tensor:
        labels = noise.integers("label", self.spec.classes) if labels is None else labels
        return self.decode(self.latents(count, noise), labels)

    def latents(self, count: int, noise: Noise, labels: Tensor | None = None) -> Tensor:
        return noise.normal("latent", self.config.latent_size)

    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.generator(latents, labels)


class Generator(nn.Module):
    """Latents (N, L) and labels (N,) -> images (N, C, H, W) in [0, 1]."""

    def __init__(self, config: GanConfig, spec: DataSpec) -> None:
        super().__init__()
        self.classes = nn.Embedding(spec.classes, config.latent_size)
        self.decoder = Decoder(2 * config.latent_size, spec.channels, spec.size, config.width)

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        return torch.sigmoid(self.decoder(torch.cat([latents, self.classes(labels)], 1)))


class Discriminator(nn.Module):
    """Images (N, C, H, W) and labels (N,) -> logits (N,) of being real: psi(phi(x)) + e_y . phi(x)."""

    def __init__(self, config: GanConfig, spec: DataSpec) -> None:
        super().__init__()
        wrap = spectral_norm if config.spectral_normalisation else lambda layer: layer
        features = 4 * config.width
        self.encoder = Encoder(spec.channels, spec.size, config.width, features, normalise=False, wrap=wrap)
        # Without spectral normalisation the scale of the logits is learned; with it classes collapse.
        self.realness = nn.Linear(features, 1)
        self.classes = nn.Embedding(spec.classes, features)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        features = F.leaky_relu(self.encoder(images), 0.2)
        return self.realness(features).squeeze(1) + (self.classes(labels) * features).sum(1)
