"""A convolutional classifier: convolutions and pooling, dense layers, softmax.

The default is a common tutorial network: convolutions with 32, 64 and 64 channels and a dense layer of 64.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.core.dataset import Split
from pipeline.core.noise import Noise
from pipeline.core.task import Batch, DataSpec, Phase, Task
from pipeline.layers.augmentation import color_jitter, crop, erase, flip, jitter, rotate
from pipeline.layers.calibration import fit_temperature
from pipeline.layers.private import PrivateLoss
from pipeline.models.cnn.losses import LOSSES
from pipeline.models.cnn.mixing import mix, partner_reader
from pipeline.models.cnn.networks import NETWORKS
from pipeline.models.cnn.settings import CnnConfig


class Cnn(Task):
    """Classifies images.

    The input of its last layer is the feature space in which images are compared.
    """

    Config = CnnConfig
    class_weights: Tensor | None = None  # (classes,); their mean over the training images is 1
    temperature: Tensor  # by which the logits are divided, if ``calibrate`` is set
    read_partners: Callable[[Noise], tuple[Batch, Noise]] | None = None  # what images are mixed with

    def __init__(self, config: CnnConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.network = NETWORKS[config.architecture](config, spec)
        if config.calibrate:
            self.register_buffer("temperature", torch.ones(()))
        self.private = PrivateLoss(config.privacy) if config.privacy else None

    def phases(self) -> list[Phase]:
        return [Phase("classifier", self.network, self.config.optimizer.build(self.network.parameters()))]

    def on_train_start(self, split: Split) -> None:
        if self.config.class_weights == "auto":
            labels = torch.from_numpy(split.labels)
            counts = torch.bincount(labels, minlength=self.spec.classes)
            weights = len(labels) / (counts.clamp_min(1) * (counts > 0).sum())
            self.class_weights = weights.to(self.device)
        if self.config.mixup or self.config.cutmix:
            self.read_partners = partner_reader(split)
        self.network.fit(split)

    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Mapping[str, Tensor]]:
        return self.private(self, self._loss, batch, noise) if self.private else self._loss(batch, noise)

    def _loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Mapping[str, Tensor]]:
        images, labels = self._augment(batch.images, noise), batch.labels
        if self.read_partners is None:
            logits = self.network(images, noise).float()
            losses = self._losses(logits, labels)
        else:
            others, their_noise = self.read_partners(noise)
            partners = self._augment(others.images, their_noise)
            images, share = mix(images, partners, noise, self.config.mixup, self.config.cutmix)
            logits = self.network(images, noise).float()
            losses = share * self._losses(logits, labels) + (1 - share) * self._losses(logits, others.labels)
        return losses.mean(), {"accuracy": (logits.argmax(1) == labels).float().mean()}

    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        losses = LOSSES[self.config.loss](logits, labels, self.config)
        return losses if self.class_weights is None else losses * self.class_weights[labels]

    def _augment(self, images: Tensor, noise: Noise) -> Tensor:
        images = flip(images, noise, self.config.flip)
        images = rotate(images, noise, self.config.rotate)
        images = jitter(images, noise, self.config.shift, self.config.zoom)
        images = crop(images, noise, self.config.crop)
        images = color_jitter(images, noise, self.config.color_jitter)
        return erase(images, noise, self.config.erase)

    def calibrate(self, batches: Iterable[Batch]) -> None:
        if self.config.calibrate:
            with torch.no_grad():
                pairs = [(self._logits(batch.images), batch.labels) for batch in batches]
            logits, labels = map(torch.cat, zip(*pairs))
            self.temperature.fill_(fit_temperature(logits, labels))

    def evaluate(self, batch: Batch, noise: Noise) -> Mapping[str, Tensor]:
        logits = self.classify(batch.images)
        return {
            "accuracy": (logits.argmax(1) == batch.labels).float(),
            "cross_entropy": F.cross_entropy(logits, batch.labels, reduction="none"),
        }

    def classify(self, images: Tensor) -> Tensor:
        logits = self._logits(images)
        return logits / self.temperature if self.config.calibrate else logits

    def _logits(self, images: Tensor) -> Tensor:
        return self.network.output(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        features = self.network.features(images)
        if self.config.test_time_flip:  # the last layer is linear: this also averages the logits
            features = (features + self.network.features(images.flip(-1))) / 2
        return features
