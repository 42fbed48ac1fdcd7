"""In-memory data sets with the interface of pipeline.core.dataset."""

import numpy as np

from pipeline.core.batch import Batch
from pipeline.core.dataset import Split
from pipeline.core.fields import DataSpec


def array_split(images, labels, classes):
    """A split of one shard: images (N, C, H, W), uint8, and labels (N,), int64."""
    spec = DataSpec.labelled_images(images.shape[1], images.shape[2], classes)
    return Split([{"image": images, "label": labels}], spec)


def batch_of(images, labels):
    """A batch of images (N, C, H, W), float32 in [0, 1], and labels (N,), int64."""
    return Batch({"image": images, "label": labels})


class ArrayDataset:
    """Two or more classes of bright squares in different places, plus noise: learnable in a few steps."""

    def __init__(self, channels=1, size=8, classes=2, train=96, validation=40, test=40, seed=0):
        self.spec = DataSpec.labelled_images(channels, size, classes)
        self.class_names = tuple(f"class {index}" for index in range(classes))
        random = np.random.default_rng(seed)
        self.train, self.validation, self.test = (
            self._split(random, count) for count in (train, validation, test)
        )
        self.digest = "0" * 64

    def _split(self, random, count):
        size, classes = self.spec.size, self.spec.classes
        labels = np.arange(count, dtype=np.int64) % classes
        images = random.integers(0, 60, (count, self.spec.channels, size, size), dtype=np.uint8)
        side = max(1, size // 4)
        for image, label in zip(images, labels, strict=True):
            top, left = divmod(int(label) * side, size)
            image[:, top * side : (top + 1) * side, left : left + side] += 180
        return array_split(images, labels, classes)


def mask_split(images, masks, spec):
    """A split of one shard: images (N, C, H, W) and masks (N, H, W), uint8."""
    return Split([{"image": images, "mask": masks}], spec)
