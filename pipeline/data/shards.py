"""Write shards: ``images-00000.npy``, uint8 (N, C, H, W), and ``labels-00000.npy``, int64 (N,)."""

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from pipeline.files import sha256

SHARD_BYTES = 256_000_000  # maximum size of an images file


class ShardWriter:
    """Writes images to files of at most ``SHARD_BYTES``, without keeping them in memory."""

    def __init__(self, folder: Path, shape: tuple[int, int, int]) -> None:
        self._folder, self._shape = folder, shape
        self._capacity = max(1, (SHARD_BYTES - 128) // int(np.prod(shape)))  # an .npy header takes 128 bytes
        self._file: BinaryIO | None = None
        self._labels: list[np.ndarray] = []
        self.shards: list[dict[str, Any]] = []
        folder.mkdir(parents=True)

    def write(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Append images (n, C, H, W) and their labels (n,)."""
        while len(images):
            if self._file is None:
                self._file = open(self._path("images"), "wb")  # noqa: SIM115 - closed by close()
                self._write_header(0)
            room = self._capacity - sum(map(len, self._labels))
            self._file.write(np.ascontiguousarray(images[:room]).data)
            self._labels.append(labels[:room])
            images, labels = images[room:], labels[room:]
            if len(images):
                self.close()

    def close(self) -> list[dict[str, Any]]:
        """Finish the open shard; return the manifest entries of all shards."""
        if self._file is not None:
            labels = np.concatenate(self._labels).astype(np.int64)
            self._file.seek(0)
            self._write_header(len(labels))
            self._file.close()
            np.save(self._path("labels"), labels)
            entries = {
                kind: {"file": self._name(kind), "sha256": sha256(self._path(kind))}
                for kind in ("images", "labels")
            }
            self.shards.append({"count": len(labels), **entries})
            self._file, self._labels = None, []
        return self.shards

    def _write_header(self, count: int) -> None:
        assert self._file is not None
        # NumPy pads the header, so that it can be overwritten with a larger count.
        header = {
            "descr": npy.dtype_to_descr(np.dtype(np.uint8)),
            "fortran_order": False,
            "shape": (count, *self._shape),
        }
        npy.write_array_header_1_0(self._file, header)

    def _name(self, kind: str) -> str:
        return f"{self._folder.name}/{kind}-{len(self.shards):05d}.npy"

    def _path(self, kind: str) -> Path:
        return self._folder.parent / self._name(kind)
