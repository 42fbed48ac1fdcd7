"""The processed data: three splits of memory-mapped shards, verified by hash when they are opened."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import BadInput
from pipeline.files import digest_of, read_json, sha256

REMEDY = "create it again: dvc repro --force preprocess"


class Split:
    """The images and labels of one split, in shards of ``shard_sizes`` rows. Images are read on access."""

    def __init__(self, images: list[np.ndarray], labels: list[np.ndarray]) -> None:
        self._images, self._labels = images, labels
        self.shard_sizes = tuple(len(shard) for shard in labels)
        self._ends = np.cumsum(self.shard_sizes)
        self._count = int(self._ends[-1])

    @cached_property
    def labels(self) -> np.ndarray:
        """All labels, int64 (N,), in memory."""
        return np.concatenate(self._labels)

    def __len__(self) -> int:
        return self._count

    def rows(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The uint8 images (n, C, H, W) and int64 labels (n,) at ``indices``, in that order.

        Raises ``IndexError`` for a negative index.
        """
        indices = np.asarray(indices, dtype=np.int64)
        if len(indices) and indices.min() < 0:
            raise IndexError(f"index {indices.min()} is negative")
        if len(self._images) == 1:
            return self._images[0][indices], self._labels[0][indices]
        images = np.empty((len(indices), *self._images[0].shape[1:]), np.uint8)
        labels = np.empty(len(indices), np.int64)
        shards = np.searchsorted(self._ends, indices, side="right")
        for shard in np.unique(shards):
            here = shards == shard
            within = indices[here] - self._ends[shard] + self.shard_sizes[shard]
            images[here], labels[here] = self._images[shard][within], self._labels[shard][within]
        return images, labels

    def chunks(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All images and labels in order, ``size`` at a time; the last chunk may be smaller."""
        for start in range(0, len(self), size):
            yield self.rows(np.arange(start, min(start + size, len(self))))


class Dataset:
    """The output of the stage ``preprocess``."""

    def __init__(self, folder: Path, manifest: dict[str, Any], splits: dict[str, Split]) -> None:
        self.folder, self.manifest = folder, manifest
        self.train, self.validation, self.test = (splits[name] for name in ("train", "validation", "test"))
        self.source: str = manifest["source"]
        self.class_names: tuple[str, ...] = tuple(manifest["class_names"])
        self.channels: int = manifest["channels"]
        self.size: int = manifest["size"]
        self.digest = digest_of(manifest)

    @classmethod
    def open(cls, folder: Path) -> "Dataset":
        """Open the data in ``folder`` and check the hashes of all files.

        Raises ``BadInput`` that names the first missing or changed file.
        """
        path = folder / "manifest.json"
        try:
            manifest = read_json(path)
            shape = (manifest["channels"], manifest["size"], manifest["size"])
            shards = {name: manifest["splits"][name]["shards"] for name in ("train", "validation", "test")}
            entries = [entry for split in shards.values() for entry in split]
            _verify(folder, [entry[kind] for entry in entries for kind in ("images", "labels")])
            splits = {name: _open_split(folder, split, shape) for name, split in shards.items()}
            return cls(folder, manifest, splits)
        except FileNotFoundError:
            raise BadInput("is missing", where=str(path), remedy="create it: dvc repro preprocess") from None
        except (OSError, ValueError, TypeError, LookupError) as error:
            what = f"is not a manifest of processed data ({error!r})"
            raise BadInput(what, where=str(path), remedy=REMEDY) from None


def _verify(folder: Path, files: list[dict[str, str]]) -> None:
    paths = [folder / file["file"] for file in files]
    # Hashing releases the interpreter lock: two threads are twice as fast.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        digests = pool.map(lambda path: sha256(path) if path.is_file() else "", paths)
        for path, file, digest in zip(paths, files, digests):
            if digest != file["sha256"]:
                what = "is missing or differs from what preprocessing wrote"
                raise BadInput(what, where=str(path), remedy=REMEDY)


def _open_split(folder: Path, shards: list[dict[str, Any]], shape: tuple[int, int, int]) -> Split:
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for shard in shards:
        for arrays, kind, dtype, row in (
            (images, "images", np.dtype(np.uint8), shape),
            (labels, "labels", np.dtype(np.int64), ()),
        ):
            path, expected = folder / shard[kind]["file"], (shard["count"], *row)
            array = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
            if array.dtype != dtype or array.shape != expected:
                what = f"is {array.dtype} {array.shape}, not {dtype} {expected}"
                raise BadInput(what, where=str(path), remedy=REMEDY)
            arrays.append(array)
    return Split(images, labels)
