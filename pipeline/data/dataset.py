"""The processed data as training and evaluation see it: three splits, verified, memory-mapped."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import BadInput
from pipeline.files import digest_of, read_json, sha256

REMEDY = "make it anew: dvc repro --force preprocess"


class Split:
    """The images and labels of one split. Images stay on disk until they are asked for."""

    def __init__(self, images: list[np.ndarray], labels: list[np.ndarray]) -> None:
        self._images = images
        self._ends = np.cumsum([len(shard) for shard in images])
        self.labels = np.concatenate(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The uint8 images (n, C, H, W) and int64 labels (n,) at ``indices``, in that order. Negative indices raise ``IndexError``."""
        indices = np.asarray(indices, dtype=np.int64)
        if len(indices) and indices.min() < 0:
            raise IndexError(f"index {indices.min()} is negative")
        labels = self.labels[indices]
        if len(self._images) == 1:
            return self._images[0][indices], labels
        images = np.empty((len(indices), *self._images[0].shape[1:]), np.uint8)
        shards = np.searchsorted(self._ends, indices, side="right")
        for shard in np.unique(shards):
            here = shards == shard
            images[here] = self._images[shard][indices[here] - self._ends[shard] + len(self._images[shard])]
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
            splits = {name: _open_split(folder, manifest["splits"][name], shape) for name in ("train", "validation", "test")}
            return cls(folder, manifest, splits)
        except FileNotFoundError:
            raise BadInput("is missing", where=str(path), remedy="make it: dvc repro preprocess") from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise BadInput(f"is no manifest of processed data ({error!r})", where=str(path), remedy=REMEDY) from None


def _open_split(folder: Path, entry: dict[str, Any], shape: tuple[int, int, int]) -> Split:
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for shard in entry["shards"]:
        for kind, into in (("images", images), ("labels", labels)):
            path = folder / shard[kind]["file"]
            if not path.is_file() or sha256(path) != shard[kind]["sha256"]:
                raise BadInput("is missing or differs from what preprocessing wrote", where=str(path), remedy=REMEDY)
            array = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
            dtype, expected = (np.uint8, (shard["count"], *shape)) if kind == "images" else (np.int64, (shard["count"],))
            if array.dtype != dtype or array.shape != expected:
                raise BadInput(f"is {array.dtype} {array.shape}, not {np.dtype(dtype)} {expected}", where=str(path), remedy=REMEDY)
            into.append(array)
    return Split(images, labels)
