"""A Wasserstein GAN with gradient penalty (Gulrajani et al. 2017), which is computed on every second step.

The penalty is a phase of its own that shares the critic and its optimizer (Karras et al. 2020). The generator
begins at step 3 and has a learning-rate schedule of its own.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pipeline.core.batch import Batch
from pipeline.core.fields import DataSpec
from pipeline.core.noise import Noise
from pipeline.core.optimizers import OptimizerSettings
from pipeline.core.settings import ScheduleSettings
from pipeline.core.task import Phase, Task
from pipeline.params import Section

LATENT_SIZE, WIDTH, PENALTY_WEIGHT = 4, 16, 10.0


class ToyWganConfig(Section):
    optimizer: OptimizerSettings = OptimizerSettings(kind="adam", learning_rate=1e-3, beta1=0.0)


class ToyWgan(Task):
    Config = ToyWganConfig

    def __init__(self, config: ToyWganConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        num_pixels = spec.channels * spec.size**2
        self.generator = nn.Sequential(
            nn.Linear(LATENT_SIZE, WIDTH), nn.Tanh(), nn.Linear(WIDTH, num_pixels), nn.Sigmoid()
        )
        self.critic = nn.Sequential(nn.Linear(num_pixels, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))

    def phases(self) -> list[Phase]:
        critic = self.config.optimizer.build(self.critic.parameters())
        generator = self.config.optimizer.build(self.generator.parameters())
        cosine = ScheduleSettings(kind="cosine")
        return [
            Phase("critic", self.critic, critic),
            Phase("penalty", self.critic, critic, every=2),
            Phase("generator", self.generator, generator, first=3, schedule=cosine),
        ]

    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Mapping[str, Tensor]]:
        generated = self.generator(noise.normal("latent", LATENT_SIZE))
        if phase == "generator":
            return -self.critic(generated).mean(), {}
        real, generated = batch.images.flatten(1), generated.detach()
        if phase == "critic":
            return self.critic(generated).mean() - self.critic(real).mean(), {}
        mixed = generated + noise.uniform("mix", 1) * (real - generated)
        mixed.requires_grad_(True)
        (gradient,) = torch.autograd.grad(self.critic(mixed).sum(), mixed, create_graph=True)
        return PENALTY_WEIGHT * (gradient.norm(dim=1) - 1).square().mean(), {}

    def evaluate(self, batch: Batch, noise: Noise) -> Mapping[str, Tensor]:
        generated = self.generator(noise.normal("latent", LATENT_SIZE))
        return {"critic_gap": (self.critic(batch.images.flatten(1)) - self.critic(generated)).squeeze(1)}

    def generate(self, labels: Tensor | None, count: int, noise: Noise) -> Tensor:
        images = self.generator(noise.normal("latent", LATENT_SIZE))
        return images.unflatten(1, (self.spec.channels, self.spec.size, self.spec.size))
