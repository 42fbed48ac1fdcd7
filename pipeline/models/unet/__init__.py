"""Semantic segmentation by a U-Net (Ronneberger et al. 2015), without batch statistics."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.core.dataset import Split
from pipeline.core.noise import Noise
from pipeline.core.task import Batch, DataSpec, Phase, Preview, Ratio, Task
from pipeline.layers.augmentation import crop, flip
from pipeline.layers.label_maps import IGNORED, answers, overlap, paint, parts
from pipeline.models.unet.losses import LOSSES, mean_of_known
from pipeline.models.unet.networks import SegmentationNetwork
from pipeline.models.unet.settings import UnetConfig

CHUNK = 256  # label maps that are counted at a time
NUM_SHOWN = 12  # examples of a preview


class Unet(Task):
    """Labels the pixels of images. It learns from the fields ``image`` and ``mask``."""

    Config = UnetConfig
    dataset = "scenes"
    class_weights: Tensor | None = None  # (K,); their mean over the training pixels is 1

    def __init__(self, config: UnetConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        counts = [min(config.max_width, config.width * 2**level) for level in range(config.depth + 1)]
        standardised = config.normalisation == "weight"
        self.num_classes = spec["mask"].num_values
        adds = config.skips == "add"
        self.network = SegmentationNetwork(
            spec.channels,
            self.num_classes,
            counts,
            standardised,
            config.num_blocks,
            config.decoder_blocks,
            adds,
            config.patch_size,
        )

    def phases(self) -> list[Phase]:
        return [Phase("segmenter", self.network, self.config.optimizer.build(self.network.parameters()))]

    def on_train_start(self, split: Split) -> None:
        if self.config.class_weights == "auto":
            counts = torch.zeros(256, dtype=torch.int64)
            for rows in split.chunks(CHUNK):
                counts += torch.bincount(torch.from_numpy(rows["mask"]).flatten().int(), minlength=256)
            counts = counts[: self.num_classes]
            weights = counts.sum() / (counts.clamp_min(1) * (counts > 0).sum())
            self.class_weights = weights.to(self.device)

    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Mapping[str, Tensor]]:
        images, masks = self._augmented(batch, noise)
        logits = self.segment(images).float()
        losses = LOSSES[self.config.loss](logits, masks, self.config, self.class_weights)
        correct = mean_of_known((logits.argmax(1) == masks).float(), masks)
        return losses.mean(), {"pixel_accuracy": correct.mean()}

    def _augmented(self, batch: Batch, noise: Noise) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) and masks (N, H, W), mirrored and shifted alike."""
        both = torch.cat([batch.images, batch["mask"][:, None].float()], 1)
        both = crop(flip(both, noise, self.config.flip), noise, self.config.crop)
        return both[:, :-1], both[:, -1].round().long()

    def evaluate(self, batch: Batch, noise: Noise) -> Mapping[str, Tensor | Ratio]:
        measured = zip(*map(self._measure, parts(batch)), strict=True)
        both, found, real, cross_entropy = (torch.cat(each) for each in measured)
        union = found + real - both
        return {
            "mean_iou": Ratio(both, union),
            "foreground_iou": Ratio(both[:, 1:], union[:, 1:]),
            "pixel_accuracy": Ratio(both.sum(1), real.sum(1)),
            "cross_entropy": cross_entropy,
        }

    def _measure(self, batch: Batch) -> tuple[Tensor, ...]:
        """Pixels of each class in both label maps, the answer and the truth; and the cross-entropy."""
        logits, masks = self.segment(batch.images), batch["mask"]
        losses = F.cross_entropy(logits, masks, ignore_index=IGNORED, reduction="none")
        return *overlap(logits.argmax(1), masks, self.num_classes), mean_of_known(losses, masks)

    def segment(self, images: Tensor) -> Tensor:
        return self.network(images)

    def preview(self, examples: Batch, noise: Noise) -> Preview:
        """Image, truth and answer, for two examples in a row."""
        shown = examples.rows(0, min(NUM_SHOWN, len(examples) // 2 * 2))
        labels = (shown["mask"], answers(self.segment, shown.images))
        maps = [paint(each, self.num_classes) for each in labels]
        image = shown.images[:, :3].expand(-1, 3, -1, -1)
        return Preview(torch.stack([image, *maps], 1).flatten(0, 1), 6)
