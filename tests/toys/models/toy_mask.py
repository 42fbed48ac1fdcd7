"""Label each pixel of an image by a convolution."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.batch import Batch
from pipeline.core.fields import DataSpec
from pipeline.core.noise import Noise
from pipeline.core.optimizers import OptimizerSettings
from pipeline.core.task import Phase, Preview, Ratio, Task
from pipeline.params import Section


class ToyMaskConfig(Section):
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=1e-2)


class ToyMask(Task):
    Config = ToyMaskConfig
    dataset = "scenes"

    def __init__(self, config: ToyMaskConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.network = nn.Conv2d(spec.channels, spec["mask"].num_values, 3, padding=1)

    def phases(self) -> list[Phase]:
        return [Phase("segmenter", self.network, self.config.optimizer.build(self.network.parameters()))]

    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Mapping[str, Tensor]]:
        return F.cross_entropy(self.network(batch.images).float(), batch["mask"]), {}

    def evaluate(self, batch: Batch, noise: Noise) -> Mapping[str, Tensor | Ratio]:
        classes, masks = self.spec["mask"].num_values, batch["mask"]
        logits = self.network(batch.images)
        found, real = (F.one_hot(labels, classes).bool() for labels in (logits.argmax(1), masks))
        ratio = Ratio((found & real).sum(dim=(1, 2)), (found | real).sum(dim=(1, 2)))  # each (N, classes)
        return {
            "mean_iou": ratio,
            "cross_entropy": F.cross_entropy(logits, masks, reduction="none").mean(dim=(1, 2)),
        }

    def preview(self, examples: Batch, noise: Noise) -> Preview:
        scale = self.spec["mask"].num_values - 1
        found = self.network(examples.images).argmax(1)
        maps = [(labels / scale)[:, None].expand_as(examples.images) for labels in (examples["mask"], found)]
        return Preview(torch.stack([examples.images, *maps], dim=1)[:8].flatten(0, 1), 3)
