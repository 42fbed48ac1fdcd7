"""In-memory data sets with the interface of pipeline.core.dataset."""

import numpy as np

from pipeline.core import model_files
from pipeline.core.batch import Batch
from pipeline.core.dataset import SPLITS, Split
from pipeline.core.fields import DataSpec, Field

NUM_FRAMES, THRESHOLD = 3, 100


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


def spec_for(name, channels=1, size=8, classes=2, labelled=False):
    """The fields that the model ``name`` learns from; clips have a label if ``labelled``."""
    images = DataSpec.labelled_images(channels, size, classes)
    label = {"label": images["label"]} if labelled else {}
    return {
        "images": images,
        "clips": DataSpec({"clip": Field("clip", (NUM_FRAMES, channels, size, size)), **label}),
        "scenes": DataSpec({"image": images["image"], "mask": Field("label_map", (size, size), classes)}),
    }[model_files.find(name).dataset]


def dataset_for(name, labelled=False):
    """An :class:`ArrayDataset` of what the model ``name`` learns from.

    A clip is an image that moves to the right. The mask of an image is 1 where it is bright.
    """
    data = ArrayDataset()
    data.spec = spec_for(name, labelled=labelled)
    for split in SPLITS:
        rows = getattr(data, split).rows(np.arange(len(getattr(data, split))))
        images = rows["image"]
        rows["clip"] = np.stack([np.roll(images, shift, axis=3) for shift in range(NUM_FRAMES)], axis=1)
        rows["mask"] = (images[:, 0] > THRESHOLD).astype(np.uint8)
        setattr(data, split, Split([{field: rows[field] for field in data.spec.fields}], data.spec))
    return data


def needs_for(name, seed=0):
    """The untrained models that the model ``name`` needs, for images of 8 x 8 pixels."""
    return {need: model_files.build(need, {}, spec_for(need), seed) for need in model_files.find(name).needs}


def mask_split(images, masks, spec):
    """A split of one shard: images (N, C, H, W) and masks (N, H, W), uint8."""
    return Split([{"image": images, "mask": masks}], spec)
