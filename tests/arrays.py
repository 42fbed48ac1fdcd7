"""In-memory data sets with the interface of pipeline.core.dataset."""

from dataclasses import dataclass

import numpy as np


@dataclass
class ArraySplit:
    images: np.ndarray  # (N, C, H, W), uint8
    labels: np.ndarray

    def __len__(self):
        return len(self.labels)

    @property
    def shard_sizes(self):
        return (len(self),)

    def rows(self, indices):
        return self.images[indices], self.labels[indices]

    def chunks(self, size):
        for start in range(0, len(self), size):
            yield self.images[start : start + size], self.labels[start : start + size]


class ArrayDataset:
    """Two or more classes of bright squares in different places, plus noise: learnable in a few steps."""

    def __init__(self, channels=1, size=8, classes=2, train=96, validation=40, test=40, seed=0):
        self.channels, self.size = channels, size
        self.class_names = tuple(f"class {index}" for index in range(classes))
        random = np.random.default_rng(seed)
        self.train, self.validation, self.test = (
            self._split(random, count) for count in (train, validation, test)
        )
        self.digest = "0" * 64

    def _split(self, random, count):
        labels = np.arange(count, dtype=np.int64) % len(self.class_names)
        images = random.integers(0, 60, (count, self.channels, self.size, self.size), dtype=np.uint8)
        side = max(1, self.size // 4)
        for image, label in zip(images, labels, strict=True):
            top, left = divmod(int(label) * side, self.size)
            image[:, top * side : (top + 1) * side, left : left + side] += 180
        return ArraySplit(images, labels)
