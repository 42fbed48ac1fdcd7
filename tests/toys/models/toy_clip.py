"""Predict the last frame of a clip from the earlier ones, by a convolution."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pipeline.core.batch import Batch
from pipeline.core.fields import DataSpec
from pipeline.core.noise import Noise
from pipeline.core.optimizers import OptimizerSettings
from pipeline.core.task import Phase, Preview, Task
from pipeline.params import Section


class ToyClipConfig(Section):
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=1e-2)


class ToyClip(Task):
    Config = ToyClipConfig
    dataset = "clips"

    def __init__(self, config: ToyClipConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        frames, channels, _, _ = spec["clip"].shape
        self.network = nn.Conv2d((frames - 1) * channels, channels, 3, padding=1)

    def phases(self) -> list[Phase]:
        return [Phase("predictor", self.network, self.config.optimizer.build(self.network.parameters()))]

    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Mapping[str, Tensor]]:
        return (self.predict(batch["clip"]) - batch["clip"][:, -1]).square().mean(), {}

    def evaluate(self, batch: Batch, noise: Noise) -> Mapping[str, Tensor]:
        return {"mse": (self.predict(batch["clip"]) - batch["clip"][:, -1]).square().mean(dim=(1, 2, 3))}

    def predict(self, clips: Tensor) -> Tensor:
        """Clips (N, T, C, H, W) -> predictions of their last frames (N, C, H, W)."""
        return torch.sigmoid(self.network(clips[:, :-1].flatten(1, 2)))

    def preview(self, examples: Batch, noise: Noise) -> Preview:
        clips = examples["clip"][:8]
        frames = torch.cat([clips, self.predict(clips)[:, None]], dim=1)
        return Preview(frames.flatten(0, 1), frames.shape[1])
