"""A recurrent convolutional network of clips: predicts their next frames, or classifies them.

Shi et al. 2015, "Convolutional LSTM Network"; Bengio et al. 2015 (scheduled sampling). The cells that have
read the input frames go on with their own predictions, as in the code of PredRNN (Wang et al. 2017). So
every frame but the first is predicted, and all of them are learned from. Clips are (N, T, C, H, W).
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.dataset import Split
from pipeline.core.noise import Noise
from pipeline.core.task import Batch, DataSpec, Phase, Preview, Task
from pipeline.errors import BadInput
from pipeline.layers.similarity import ssim
from pipeline.models.rcnn.networks import Network
from pipeline.models.rcnn.settings import RcnnConfig

NUM_PREVIEWS = 4  # clips
NUM_CLIPS_FOR_MEAN, SMALLEST_MEAN = 100, 0.01


class Rcnn(Task):
    """Forecasts or classifies clips."""

    Config = RcnnConfig
    dataset = "clips"

    def __init__(self, config: RcnnConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        num_frames, channels, *_ = spec["clip"].shape
        self.forecasts = config.task == "forecast"
        self.input_frames = config.input_frames or num_frames // 2
        if self.forecasts and not 1 <= self.input_frames < num_frames:
            what = f"clips of {num_frames} frames have none after the first {self.input_frames}"
            raise BadInput(what, where="input_frames", remedy="set it lower, or make longer clips")
        self.network = Network(config, channels, 0 if self.forecasts else spec.classes)

    def phases(self) -> list[Phase]:
        return [Phase("rcnn", self.network, self.config.optimizer.build(self.network.parameters()))]

    def on_train_start(self, split: Split) -> None:
        """Start from the mean of the pixels: it takes many steps to find frames that are mostly black."""
        if self.forecasts:
            clips = split.rows(np.arange(min(NUM_CLIPS_FOR_MEAN, len(split))))["clip"]
            mean = np.clip(clips.mean() / 255, SMALLEST_MEAN, 1 - SMALLEST_MEAN)
            assert self.network.output.bias is not None
            nn.init.constant_(self.network.output.bias, float(np.log(mean / (1 - mean))))

    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Mapping[str, Tensor]]:
        clips = batch["clip"]
        if not self.forecasts:
            logits = self._class_logits(clips, noise)
            hits = (logits.argmax(1) == batch.labels).float()
            return F.cross_entropy(logits, batch.labels), {"accuracy": hits.mean()}
        logits, true = self._next_logits(clips, clips.shape[1] - 1, noise), clips[:, 1:]
        errors = pixel_losses[self.config.loss](logits, true).flatten(1).sum(1) / true.shape[1]
        if weight := self.config.ssim_weight:
            similarities = ssim(logits.sigmoid().flatten(0, 1), true.flatten(0, 1))
            errors = errors + weight * (1 - similarities.unflatten(0, true.shape[:2]).mean(1))
        forecast = logits.detach()[:, self.input_frames - 1 :].sigmoid()
        return errors.mean(), {"frame_mse": self._errors(forecast, clips)["frame_mse"].mean()}

    def evaluate(self, batch: Batch, noise: Noise) -> Mapping[str, Tensor]:
        clips = batch["clip"]
        if not self.forecasts:
            logits = self._class_logits(clips)
            losses = F.cross_entropy(logits, batch.labels, reduction="none")
            return {"accuracy": (logits.argmax(1) == batch.labels).float(), "cross_entropy": losses}
        known, count = clips[:, : self.input_frames], clips.shape[1] - self.input_frames
        return self._errors(self._forecast(known, count), clips)

    def forecast(self, frames: Tensor, count: int) -> Tensor | None:
        return self._forecast(frames, count) if self.forecasts else None

    def _forecast(self, frames: Tensor, count: int) -> Tensor:
        return self._next_logits(frames, frames.shape[1] - 1 + count)[:, -count:].sigmoid()

    def preview(self, examples: Batch, noise: Noise) -> Preview | None:
        """Clips, and below each its first frames with those that the network predicts."""
        clips = examples["clip"][:NUM_PREVIEWS]
        known = clips[:, : self.input_frames]
        predicted = self.forecast(known, clips.shape[1] - self.input_frames)
        if predicted is None:
            return None
        rows = torch.stack([clips, torch.cat([known, predicted], 1)], 1)
        return Preview(rows.flatten(0, 2), clips.shape[1])

    def _errors(self, predicted: Tensor, clips: Tensor) -> dict[str, Tensor]:
        """Errors summed over the pixels of a frame, and averaged over the predicted frames, (N,)."""
        differences = predicted - clips[:, self.input_frames :]
        sums = {"frame_mse": differences.square(), "frame_mae": differences.abs()}
        return {name: values.flatten(2).sum(2).mean(1) for name, values in sums.items()}

    def _next_logits(self, frames: Tensor, count: int, noise: Noise | None = None) -> Tensor:
        """Logits (N, count, C, H, W) of the frames that follow the first, the second, ... of ``frames``.

        After the last of them, and with ``noise`` (in the training) after the input frames, the network
        reads what it predicts.
        """
        states, logits, num_known = self.network.start(frames[:, 0]), list[Tensor](), frames.shape[1]
        steps, forced = self.config.teacher_forcing_steps, None
        if noise:
            num_known = self.input_frames
            if steps:
                forced = noise.uniform("teacher", count) >= noise.warm_up(steps)[:, None]
        for number in range(count):
            frame = frames[:, number] if number < num_known else logits[-1].sigmoid()
            if forced is not None and number >= num_known:
                frame = torch.where(forced[:, number, None, None, None], frames[:, number], frame)
            maps, states = self.network(frame, states, noise, number)
            logits.append(self.network.next_frame(maps, frame))
        return torch.stack(logits, 1)

    def _class_logits(self, clips: Tensor, noise: Noise | None = None) -> Tensor:
        """Logits (N, classes) of the whole clips: the mean over the map after the last frame."""
        states = self.network.start(clips[:, 0])
        for number, frame in enumerate(clips.unbind(1)):
            maps, states = self.network(frame, states, noise, number)
        return self.network.output(torch.cat(maps[1:], 1).mean((2, 3))).float()


# Each: logits of pixels and their true values in [0, 1] -> the loss of each pixel.
pixel_losses = {
    "mse": lambda logits, true: (logits.sigmoid() - true).square(),
    "l1": lambda logits, true: (logits.sigmoid() - true).abs(),
    "bce": lambda logits, true: F.binary_cross_entropy_with_logits(logits, true, reduction="none"),
}
