"""Classify images by a linear layer on the codes of a trained autoencoder."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.batch import Batch
from pipeline.core.fields import DataSpec
from pipeline.core.noise import Noise
from pipeline.core.optimizers import OptimizerSettings
from pipeline.core.task import Phase, Task
from pipeline.params import Section


class ToyProbeConfig(Section):
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=1e-2)


class ToyProbe(Task):
    Config = ToyProbeConfig
    needs = ("ae",)

    def __init__(self, config: ToyProbeConfig, spec: DataSpec, ae: Task) -> None:
        super().__init__(config, spec)
        self.ae = ae
        self.layer = nn.Linear(ae.config.code_size, spec.classes)

    def phases(self) -> list[Phase]:
        return [Phase("probe", self.layer, self.config.optimizer.build(self.layer.parameters()))]

    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Mapping[str, Tensor]]:
        return F.cross_entropy(self.classify(batch.images).float(), batch.labels), {}

    def evaluate(self, batch: Batch, noise: Noise) -> Mapping[str, Tensor]:
        logits = self.classify(batch.images)
        return {"cross_entropy": F.cross_entropy(logits, batch.labels, reduction="none")}

    def features(self, images: Tensor) -> Tensor:
        codes = self.ae.encode(images)
        assert codes is not None
        return codes

    def classify(self, images: Tensor) -> Tensor:
        return self.layer(self.features(images))
