"""Generative adversarial networks (Goodfellow et al. 2014), conditional on the class or not.

The architectures are in generators.py, discriminators.py and style.py, the losses in losses.py, regularisers
in penalties.py, augmentation of what the discriminator sees in augmentation.py. Two learning rates are those
of Heusel et al. 2017. Weight averaging is set by training.ema_decay.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.core.noise import Noise
from pipeline.core.settings import ScheduleSettings
from pipeline.core.task import Batch, DataSpec, Phase, Task
from pipeline.layers.optimizers import OptimizerSettings
from pipeline.models.gan.augmentation import AdaptiveProbability, augment
from pipeline.models.gan.discriminators import Discriminator
from pipeline.models.gan.generators import Generator
from pipeline.models.gan.losses import LOSSES
from pipeline.models.gan.penalties import (
    HistoricalAverage,
    clip_weights,
    gradient_penalty,
    input_gradients,
    path_lengths,
    zero_centred_penalty,
)
from pipeline.models.gan.settings import GanConfig as GanConfig
from pipeline.models.gan.style import StyleGenerator


class Gan(Task):
    """Generates images, of a given class if it is conditional, from normally distributed latents."""

    Config = GanConfig

    def __init__(self, config: GanConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.generator = (StyleGenerator if config.architecture == "style" else Generator)(config, spec)
        self.discriminator = Discriminator(config, spec)
        self.adversarial = LOSSES[config.adversarial_loss]
        networks = {"discriminator": self.discriminator, "generator": self.generator}
        averages = networks if config.historical_averaging else {}
        self.history = torch.nn.ModuleDict({name: HistoricalAverage(each) for name, each in averages.items()})
        self.adaptive = AdaptiveProbability() if config.adaptive_target else None

    def phases(self) -> list[Phase]:
        config = self.config
        discriminates = config.discriminator_optimizer.build(self.discriminator.parameters())
        generates = config.generator_optimizer.build(self.generator.parameters())
        if config.weight_clipping:
            clip_weights(discriminates, config.weight_clipping)
        phases = [
            Phase("discriminator", self.discriminator, discriminates, config.discriminator_every),
            Phase("generator", self.generator, generates, config.generator_every),
        ]
        if config.penalty_every > 1:  # else it is part of the discriminator's loss
            phases.append(Phase("penalty", self.discriminator, discriminates, config.penalty_every))
        if config.path_length:
            phases.append(Phase("path_length", self.generator, generates, config.path_length_every))
        if self.adaptive:
            # This Adam's steps have the size of its learning rate.
            signed = OptimizerSettings(kind="adam", learning_rate=config.adaptive_step, beta1=0.0, beta2=0.0)
            adapts = signed.build(self.adaptive.parameters())
            constant = ScheduleSettings()
            phases.append(
                Phase("augmentation", self.adaptive, adapts, config.adaptive_every, schedule=constant)
            )
        return phases

    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Mapping[str, Tensor]]:
        labels = self._labels(batch)
        if phase == "path_length":
            return self._path_length_loss(labels, noise), {}
        if phase == "augmentation":
            assert self.adaptive
            logits = self._logits([batch.images], labels, noise)[0] - (self.adversarial.threshold or 0.0)
            probability = self.adaptive.probability
            return self.adaptive.loss(logits, self.config.adaptive_target), {"probability": probability}
        if phase == "penalty" and not (self.config.r2 or self.config.gradient_penalty):
            generated = batch.images  # they are not used
        else:
            generated = self._training_images(labels, noise)
        if phase == "generator":
            return self._generator_loss(batch.images, generated, labels, noise)
        return self._discriminator_loss(phase, batch.images, generated.detach(), labels, noise)

    def _generator_loss(
        self, images: Tensor, generated: Tensor, labels: Tensor | None, noise: Noise
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        if self.config.adversarial_loss == "relativistic":
            real, fake = self._logits([images, generated], labels, noise)
        else:
            real = fake = self._logits([generated], labels, noise)[0]
        loss = self.adversarial.generator(real, fake).mean()
        return loss + self._historical_loss("generator", noise), {}

    def _discriminator_loss(
        self, phase: str, images: Tensor, generated: Tensor, labels: Tensor | None, noise: Noise
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of the phase ``discriminator``, with penalties unless these have a phase, ``penalty``."""
        config, is_lazy = self.config, phase == "penalty"
        sources = {"real": images, "generated": generated}
        weights = {"real": config.r1, "generated": config.r2, "mixed": config.gradient_penalty}
        weights = {kind: config.penalty_every * weight for kind, weight in weights.items() if weight}
        if is_lazy != (config.penalty_every > 1):
            weights = {}  # the other phase has them
        if "mixed" in weights:
            sources["mixed"] = images.lerp(generated.float(), noise.uniform("mix", 1, 1, 1))
        kinds = weights if is_lazy else sources
        parts = {kind: sources[kind].detach().requires_grad_(kind in weights) for kind in kinds}
        logits = dict(zip(parts, self._logits(list(parts.values()), labels, noise)))
        penalty = torch.zeros((), device=images.device)
        for kind, weight in weights.items():
            measure = gradient_penalty if kind == "mixed" else zero_centred_penalty
            penalty = penalty + weight * measure(input_gradients(logits[kind], parts[kind])).mean()
        if is_lazy:
            return penalty, {}
        loss = self.adversarial.discriminator(logits["real"], logits["generated"]).mean()
        judgement = self._judgement(logits["real"], logits["generated"])
        values = {name: value.mean() for name, value in judgement.items()}
        if weights:
            loss, values["penalty"] = loss + penalty, penalty
        return loss + self._historical_loss("discriminator", noise), values

    def _path_length_loss(self, labels: Tensor | None, noise: Noise) -> Tensor:
        """The variance of path lengths: half the mean squared difference of two independent ones.

        Both are of the label of the row, so it is the variance within a class.

        Karras et al. 2020 estimate it with a running mean, which several workers would have to share.
        """
        style, lengths = self._style, []
        for index in range(2):
            codes = style.codes(noise.normal(f"latent {index}", self.config.latent_size), labels)
            images = style.synthesis(codes, noise.at(f"path_length {index}"))
            directions = noise.normal(f"direction {index}", *images.shape[1:])
            lengths.append(path_lengths(images, codes, directions))
        variance = (lengths[0] - lengths[1]).square().mean() / 2
        return self.config.path_length_every * self.config.path_length * variance

    def _historical_loss(self, network: str, noise: Noise) -> Tensor | float:
        if network not in self.history:
            return 0.0
        distance = self.history[network](getattr(self, network), noise.step_tensor())
        return self.config.historical_averaging * distance

    def _training_images(self, labels: Tensor | None, noise: Noise) -> Tensor:
        latents = noise.normal("latent", self.config.latent_size)
        if not self.config.style_mixing:
            return self.generator(latents, labels, noise)
        style, others = self._style, noise.normal("other latent", self.config.latent_size)
        crossover = 1 + noise.integers("crossover", max(1, style.num_levels - 1))
        is_mixed = noise.uniform("mixed") < self.config.style_mixing
        levels = torch.where(is_mixed, crossover, style.num_levels)
        return style.mixed(style.codes(latents, labels), style.codes(others, labels), levels, noise)

    def _logits(self, parts: list[Tensor], labels: Tensor | None, noise: Noise) -> list[Tensor]:
        """The discriminator's logits (N,) of each part, (N, C, H, W), after augmentation."""
        probability = self.adaptive.probability if self.adaptive else None
        images = torch.cat(
            [augment(part, noise, self.config, index, probability) for index, part in enumerate(parts)]
        )
        labels = None if labels is None else labels.repeat(len(parts))
        return list(self.discriminator(images, labels).float().chunk(len(parts)))

    def _judgement(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """How the discriminator judges each image (N,), from its logits."""
        if (threshold := self.adversarial.threshold) is None:
            return {"gap": real - fake}
        accuracies = {"real_accuracy": real > threshold, "generated_accuracy": fake < threshold}
        return {name: correct.float() for name, correct in accuracies.items()}

    def _labels(self, batch: Batch) -> Tensor | None:
        return batch.labels if self.config.conditional else None

    def evaluate(self, batch: Batch, noise: Noise) -> Mapping[str, Tensor]:
        labels = self._labels(batch)
        generated = self.generator(noise.normal("latent", self.config.latent_size), labels, noise)
        return self._judgement(
            self.discriminator(batch.images, labels), self.discriminator(generated, labels)
        )

    def on_train_end(self, batches: object) -> None:
        if self.config.architecture == "style":
            self._style.set_mean_codes()

    def generate(
        self, labels: Tensor | None, count: int, noise: Noise, truncation: float | None = None
    ) -> Tensor:
        """Images; ``truncation`` replaces that of the settings."""
        if labels is None and self.config.conditional:
            labels = noise.integers("label", self.spec.classes)
        return self.decode(self.latents(count, noise), labels, truncation, noise)

    def latents(self, count: int, noise: Noise, labels: Tensor | None = None) -> Tensor:
        """Latents (count, L), standard normal for all classes; ``noise`` is for ``count`` rows."""
        return noise.normal("latent", self.config.latent_size)

    def decode(
        self,
        latents: Tensor,
        labels: Tensor | None = None,
        truncation: float | None = None,
        noise: Noise | None = None,
    ) -> Tensor:
        """Images of latents (N, L) and labels (N,); without ``noise`` noise inputs are zero.

        ``truncation`` psi scales the latents. With architecture ``style`` it moves the codes to the mean code
        of their class. Labels are ignored, and may be None, if the model is not conditional.
        """
        psi = self.config.truncation if truncation is None else truncation
        labels = labels if self.config.conditional else None
        if self.config.architecture != "style":
            return self.generator(latents if psi == 1 else psi * latents, labels)
        style = self._style
        return style.synthesis(style.truncated(style.codes(latents, labels), labels, psi), noise)

    def mix(
        self, latents_a: Tensor, latents_b: Tensor, level: int, labels: Tensor | None = None
    ) -> Tensor | None:
        """Images with the styles of ``latents_a`` (N, L) at the levels below ``level``, else ``latents_b``.

        The levels are the sizes of the feature maps, from the smallest. ``labels`` (N,) are those of both, by
        default class 0. None if the architecture is not ``style``.
        """
        if self.config.architecture != "style":
            return None
        style = self._style
        if not self.config.conditional:
            labels = None
        elif labels is None:
            labels = torch.zeros(len(latents_a), dtype=torch.long, device=latents_a.device)
        return style.mixed(style.codes(latents_a, labels), style.codes(latents_b, labels), level)

    @property
    def num_levels(self) -> int:
        """The number of levels of :meth:`mix`; 0 if the architecture is not ``style``."""
        return self._style.num_levels if self.config.architecture == "style" else 0

    @property
    def _style(self) -> StyleGenerator:
        if not isinstance(self.generator, StyleGenerator):
            raise TypeError(f"the architecture {self.config.architecture} has no styles")
        return self.generator
