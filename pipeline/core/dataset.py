"""The processed data as training and evaluation see it: three splits, verified, memory-mapped."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import BadInput
from pipeline.files import digest_of, read_json, sha256

REMEDY = "make it anew: dvc repro --force preprocess"


class Split:
    """The images and labels of one split, in shards of ``shard_sizes`` rows. They stay on disk until they are asked for."""

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
        """The uint8 images (n, C, H, W) and int64 labels (n,) at ``indices``, in that order. Negative indices raise ``IndexError``."""
        indices = np.asarray(indices, dtype=np.int64)
        if len(indices) and indices.min() < 0:
            raise IndexError(f"index {indices.min()} is negative")
        if len(self._images) == 1:
            return self._images[0][indices], self._labels[0][indices]
        images, labels = (
            np.empty((len(indices), *self._images[0].shape[1:]), np.uint8),
            np.empty(len(indices), np.int64),
        )
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
    """What the stage ``preprocess`` wrote."""

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
        """The data in ``folder``, after all of its hashes were checked. Raises ``BadInput`` that names the first file that differs."""
        path = folder / "manifest.json"
        try:
            manifest = read_json(path)
            shape = (manifest["channels"], manifest["size"], manifest["size"])
            shards = {name: manifest["splits"][name]["shards"] for name in ("train", "validation", "test")}
            _verify(
                folder,
                [shard[kind] for own in shards.values() for shard in own for kind in ("images", "labels")],
            )
            return cls(
                folder, manifest, {name: _open_split(folder, own, shape) for name, own in shards.items()}
            )
        except FileNotFoundError:
            raise BadInput("is missing", where=str(path), remedy="make it: dvc repro preprocess") from None
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise BadInput(
                f"is no manifest of processed data ({error!r})", where=str(path), remedy=REMEDY
            ) from None


def _verify(folder: Path, files: list[dict[str, str]]) -> None:
    paths = [folder / file["file"] for file in files]
    with ThreadPoolExecutor(
        min(8, os.cpu_count() or 1)
    ) as pool:  # hashing needs no interpreter lock: two threads are twice as fast
        for path, file, digest in zip(
            paths, files, pool.map(lambda path: sha256(path) if path.is_file() else "", paths)
        ):
            if digest != file["sha256"]:
                raise BadInput(
                    "is missing or differs from what preprocessing wrote", where=str(path), remedy=REMEDY
                )


def _open_split(folder: Path, shards: list[dict[str, Any]], shape: tuple[int, int, int]) -> Split:
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for shard in shards:
        for kind, into in (("images", images), ("labels", labels)):
            path = folder / shard[kind]["file"]
            array = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
            dtype, expected = (
                (np.uint8, (shard["count"], *shape)) if kind == "images" else (np.int64, (shard["count"],))
            )
            if array.dtype != dtype or array.shape != expected:
                raise BadInput(
                    f"is {array.dtype} {array.shape}, not {np.dtype(dtype)} {expected}",
                    where=str(path),
                    remedy=REMEDY,
                )
            into.append(array)
    return Split(images, labels)
