"""A stage of tests: make the data sets ``clips`` and ``scenes`` of the processed digits.

A clip shows a digit that moves to the right. A scene is a digit whose pixels are labelled 1 or, in the lower
half, 2.
"""

import sys
from pathlib import Path

import numpy as np

from pipeline.core.dataset import SPLITS, Dataset
from pipeline.core.fields import PROCESSED, DataSpec, Field
from pipeline.data.shards import write_dataset

NUM_FRAMES, NUM_EXAMPLES, THRESHOLD = 3, 80, 100


def clips(images: np.ndarray) -> dict[str, np.ndarray]:
    """Images (N, C, H, W) -> the field ``clip``."""
    return {"clip": np.stack([np.roll(images, shift, axis=3) for shift in range(NUM_FRAMES)], axis=1)}


def scenes(images: np.ndarray) -> dict[str, np.ndarray]:
    """Images (N, C, H, W) -> the fields ``image`` and ``mask``."""
    height = images.shape[2]
    halves = 1 + (np.arange(height) >= height // 2)[None, :, None]
    return {"image": images, "mask": ((images[:, 0] > THRESHOLD) * halves).astype(np.uint8)}


def clips_of(image: Field):
    """The fields of a clip, and the function that makes clips of images (N, C, H, W)."""
    return DataSpec({"clip": Field("clip", (NUM_FRAMES, *image.shape))}), clips


def scenes_of(image: Field):
    """The fields of a scene, and the function that makes scenes of images (N, C, H, W)."""
    return DataSpec({"image": image, "mask": Field("label_map", image.shape[1:], 3)}), scenes


DATASETS = {"clips": clips_of, "scenes": scenes_of}


def main(folder: Path = Path(".")) -> None:
    """Write both data sets."""
    source = Dataset.open(folder / PROCESSED / "images")
    for name, fields_and_function in DATASETS.items():
        spec, make = fields_and_function(source.spec["image"])
        splits = {
            split: [make(getattr(source, split).rows(np.arange(NUM_EXAMPLES))["image"])] for split in SPLITS
        }
        manifest = {"source": source.source, "class_names": []}
        write_dataset(folder / PROCESSED / name, spec, splits, manifest)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
