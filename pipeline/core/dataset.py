"""Processed data sets: three splits of memory-mapped shards, verified by hash when they are opened.

The data set ``<name>`` is the folder data/processed/<name>. Its manifest.json has the fields of an example,
and for each split the shards: for each field a file ``<field>-00000.npy``.
"""

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.core.batch import Batch
from pipeline.core.fields import DataSpec, Field, chunks
from pipeline.errors import BadInput
from pipeline.files import digest_of, read_json, sha256
from pipeline.limits import cpu_count

SPLITS = ("train", "validation", "test")


class Split:
    """The examples of one split, in shards: for each shard an array (n, *shape) for each field.

    Values are read on access.
    """

    def __init__(self, shards: list[dict[str, np.ndarray]], spec: DataSpec) -> None:
        self.spec, self._shards = spec, shards
        self.shard_sizes = tuple(len(next(iter(shard.values()))) for shard in shards)
        self._ends = np.cumsum(self.shard_sizes)
        self._count = sum(self.shard_sizes)

    @cached_property
    def labels(self) -> np.ndarray:
        """All labels, int64 (N,), in memory."""
        if "label" not in self.spec.fields:
            remedy = "set training.sampling: shuffle, or use data with labels"
            raise BadInput("the data has no field 'label'", where="data", remedy=remedy)
        dtype = self.spec["label"].dtype
        return np.concatenate([shard["label"] for shard in self._shards], dtype=dtype)

    def __len__(self) -> int:
        return self._count

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The stored values of each field, (n, *shape), at ``indices``, in that order.

        Raises ``IndexError`` for a negative index.
        """
        indices = np.asarray(indices, dtype=np.int64)
        if len(indices) and indices.min() < 0:
            raise IndexError(f"index {indices.min()} is negative")
        first = self._shards[0]
        if len(self._shards) == 1:
            return {name: values[indices] for name, values in first.items()}
        rows = {name: np.empty((len(indices), *kind.shape[1:]), kind.dtype) for name, kind in first.items()}
        shards = np.searchsorted(self._ends, indices, side="right")
        for shard in np.unique(shards):
            here = shards == shard
            within = indices[here] - self._ends[shard] + self.shard_sizes[shard]
            for name, values in self._shards[shard].items():
                rows[name][here] = values[within]
        return rows

    def chunks(self, size: int) -> Iterator[dict[str, np.ndarray]]:
        """All rows in order, ``size`` at a time; the last chunk may be smaller."""
        for indices in chunks(len(self), size):
            yield self.rows(indices)

    def batch(self, indices: np.ndarray, device: torch.device | str = "cpu") -> Batch:
        """The examples at ``indices``."""
        return Batch.load(self.rows(indices), self.spec, device)

    def batches(
        self, size: int, device: torch.device | str = "cpu", first: int = 0, every: int = 1
    ) -> Iterator[Batch]:
        """All examples in order, in batches of ``size`` (the last may be smaller).

        With ``every`` only each ``every``-th batch, beginning with batch number ``first``.
        """
        for number, indices in enumerate(chunks(len(self), size)):
            if number % every == first:
                yield self.batch(indices, device)


class Dataset:
    """A processed data set."""

    def __init__(
        self, folder: Path, manifest: dict[str, Any], splits: dict[str, Split], spec: DataSpec
    ) -> None:
        self.folder, self.manifest, self.spec = folder, manifest, spec
        self.train, self.validation, self.test = (splits[name] for name in SPLITS)
        self.source: str = manifest["source"]
        self.class_names: tuple[str, ...] = tuple(manifest["class_names"])
        self.digest = digest_of(manifest)

    @classmethod
    def open(cls, folder: Path, names: Collection[str] = SPLITS) -> "Dataset":
        """Open the data set in ``folder`` and check the hashes of all files of the splits ``names``.

        The other splits are empty. Raises ``BadInput`` that names the first missing or changed file.
        """
        path = folder / "manifest.json"
        try:
            manifest = read_json(path)
            spec = DataSpec.from_json(manifest["fields"])
            shards = {name: manifest["splits"][name]["shards"] if name in names else [] for name in SPLITS}
            files = [shard[name] for split in shards.values() for shard in split for name in spec.fields]
            _verify(folder, files)
            splits = {name: Split(_open(folder, split, spec), spec) for name, split in shards.items()}
            return cls(folder, manifest, splits, spec)
        except FileNotFoundError:
            remedy = f"create it: dvc repro {_stage(folder)}"
            raise BadInput("is missing", where=str(path), remedy=remedy) from None
        except (OSError, ValueError, TypeError, LookupError) as error:
            what = f"is not a manifest of processed data ({error!r})"
            raise BadInput(what, where=str(path), remedy=_again(folder)) from None


def _stage(folder: Path) -> str:
    return "preprocess" if folder.name == "images" else f"compose-{folder.name}"


def _again(folder: Path) -> str:
    return f"create it again: dvc repro --force {_stage(folder)}"


def _verify(folder: Path, files: list[dict[str, str]]) -> None:
    paths = [folder / file["file"] for file in files]
    # Hashing releases the interpreter lock: two threads are twice as fast.
    with ThreadPoolExecutor(min(8, cpu_count())) as pool:
        digests = pool.map(_digest, paths)
        for path, file, digest in zip(paths, files, digests):
            if digest != file["sha256"]:
                what = "is missing or differs from what preprocessing wrote"
                raise BadInput(what, where=str(path), remedy=_again(folder))


def _digest(path: Path) -> str:
    """The SHA-256 of a file; empty if it is missing."""
    try:
        stat = path.stat()
    except OSError:
        return ""
    return _digest_of_version(path.absolute(), stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=4096)
def _digest_of_version(path: Path, *version: int) -> str:
    """Cached: a training in the stage's own process opens the data twice."""
    return sha256(path)


def _open(folder: Path, shards: list[dict[str, Any]], spec: DataSpec) -> list[dict[str, np.ndarray]]:
    def open_file(shard: dict[str, Any], name: str, field: Field) -> np.ndarray:
        path, expected = folder / shard[name]["file"], (shard["count"], *field.shape)
        array = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
        if array.dtype != field.dtype or array.shape != expected:
            what = f"is {array.dtype} {array.shape}, not {field.dtype} {expected}"
            raise BadInput(what, where=str(path), remedy=_again(folder))
        return array

    return [{name: open_file(shard, name, field) for name, field in spec.fields.items()} for shard in shards]
