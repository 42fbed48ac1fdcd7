"""Write the shards of a split: for each field of the examples files ``<field>-00000.npy``, (N, *shape)."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from pipeline.core.fields import DataSpec, Field
from pipeline.files import atomic_folder, sha256, write_json

SHARD_BYTES = 256_000_000  # maximum size of a file
HEADER_BYTES = 128  # of an .npy file


class ShardWriter:
    """Writes examples to files of at most ``SHARD_BYTES``, without keeping them in memory."""

    def __init__(self, folder: Path, spec: DataSpec) -> None:
        self._folder, self._spec = folder, spec
        row_bytes = max(field.dtype.itemsize * int(np.prod(field.shape)) for field in spec.fields.values())
        self._capacity = max(1, (SHARD_BYTES - HEADER_BYTES) // row_bytes)
        self._files: dict[str, BinaryIO] = {}  # of the open shard
        self._count = 0  # its rows
        self.shards: list[dict[str, Any]] = []
        folder.mkdir(parents=True)

    def write(self, rows: Mapping[str, np.ndarray]) -> None:
        """Append the values of each field, (n, *shape)."""
        start, total = 0, len(next(iter(rows.values())))
        while start < total:
            if not self._files:
                self._files = {name: self._path(name).open("wb") for name in self._spec.fields}
                self._write_headers()
            stop = min(total, start + self._capacity - self._count)
            for name, field in self._spec.fields.items():
                self._files[name].write(np.ascontiguousarray(rows[name][start:stop], field.dtype).data)
            self._count += stop - start
            start = stop
            if self._count == self._capacity:
                self.close()

    def close(self) -> list[dict[str, Any]]:
        """Finish the open shard; return the manifest entries of all shards."""
        if self._files:
            self._write_headers()
            for file in self._files.values():
                file.close()
            entries = {
                name: {"file": self._name(name), "sha256": sha256(self._path(name))} for name in self._files
            }
            self.shards.append({"count": self._count, **entries})
            self._files, self._count = {}, 0
        return self.shards

    def _write_headers(self) -> None:
        # NumPy pads the header, so that it can be overwritten with a larger count.
        for name, file in self._files.items():
            file.seek(0)
            npy.write_array_header_1_0(file, _header(self._spec[name], self._count))

    def _name(self, field: str) -> str:
        return f"{self._folder.name}/{field}-{len(self.shards):05d}.npy"

    def _path(self, field: str) -> Path:
        return self._folder.parent / self._name(field)


def write_dataset(
    target: Path,
    spec: DataSpec,
    splits: Mapping[str, Iterable[Mapping[str, np.ndarray]]],
    manifest: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the data set ``target``, as a whole or not at all, and return its manifest.

    ``splits`` has the chunks of each split: the values of each field, (n, *shape). To ``manifest``, with at
    least ``source`` and ``class_names``, the fields and the shards are added.
    """
    with atomic_folder(target) as folder:
        entries = {}
        for name, chunks in splits.items():
            writer = ShardWriter(folder / name, spec)
            for rows in chunks:
                writer.write(rows)
            shards = writer.close()
            entries[name] = {"count": sum(shard["count"] for shard in shards), "shards": shards}
        written = {**manifest, "fields": spec.to_json(), "splits": entries}
        write_json(folder / "manifest.json", written)
    return written


def _header(field: Field, count: int) -> dict[str, Any]:
    return {"descr": npy.dtype_to_descr(field.dtype), "fortran_order": False, "shape": (count, *field.shape)}
