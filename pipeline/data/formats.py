"""Readers of the formats in which data sets are published: IDX (MNIST and its kin), CIFAR's binary records, scikit-learn's digits.

All return uint8 images (N, C, H, W) and int64 labels (N,), and raise ``BadInput`` that names the file and what is wrong with it.
"""

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from pipeline.data.archives import read_tar
from pipeline.errors import BadInput

REMEDY = "remove it and run the stage 'download' again"
MAX_BYTES = 200_000_000  # unpacked, of one file
Arrays = tuple[np.ndarray, np.ndarray]


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The uint8 array of a gzipped IDX file: magic 0, 0, 8 (uint8), number of dimensions; their lengths, big-endian; the bytes."""
    with _unpacking(path) as stream:
        magic = stream.read(4)
        if magic != bytes([0, 0, 8, dimensions]):
            raise _bad(
                path,
                f"begins with {magic.hex(' ') or 'nothing'}, not with 00 00 08 {dimensions:02x}: no IDX file of such data",
            )
        header = stream.read(4 * dimensions)
        if len(header) < 4 * dimensions:
            raise _bad(path, "ends within its header")
        shape = struct.unpack(f">{dimensions}I", header)
        count = math.prod(shape)
        if count == 0:
            raise _bad(path, f"is empty: its header says {shape}")
        if count > MAX_BYTES:
            raise _bad(path, f"claims {count:,} bytes {shape}, more than {MAX_BYTES:,}")
        data = bytearray()
        while len(data) < count and (chunk := stream.read(min(1 << 20, count - len(data)))):
            data += chunk
        if len(data) < count:
            raise _bad(path, f"is cut short: {len(data):,} of {count:,} bytes")
        if stream.read(1):
            raise _bad(path, f"goes on after the {count:,} bytes that its header announces")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def read_idx_pair(images_path: Path, labels_path: Path, shape: tuple[int, int, int], classes: int) -> Arrays:
    """Grey images and their labels from two IDX files that belong together."""
    images, labels = read_idx(images_path, 3)[:, None], read_idx(labels_path, 1).astype(np.int64)
    if images.shape[1:] != shape:
        raise _bad(images_path, f"holds images of {images.shape[1:]}, not {shape}")
    if len(images) != len(labels):
        raise _bad(
            labels_path, f"holds {len(labels):,} labels for the {len(images):,} images of {images_path.name}"
        )
    _check_labels(labels_path, labels, classes)
    return images, labels


def read_cifar(
    path: Path, members: list[str], label_bytes: int, shape: tuple[int, int, int], names: str
) -> tuple[tuple[str, ...], list[Arrays]]:
    """The class names, read from the member ``names``, and the arrays of each of ``members`` of a binary CIFAR archive.

    A record is ``label_bytes`` labels, the last of which counts, and the pixels, channel by channel.
    """
    found = read_tar(path, [*members, names], budget=MAX_BYTES)
    class_names = tuple(found[names].decode("ascii", "replace").split())
    if len(set(class_names)) != len(class_names) or len(class_names) < 2:
        raise _bad(path, f"names no distinct classes in '{names}'")
    record, arrays = label_bytes + math.prod(shape), []
    for member in members:
        data = found.pop(member)
        if not data or len(data) % record:
            raise _bad(
                path,
                f"holds '{member}' of {len(data):,} bytes, which is no multiple of a record's {record:,}",
            )
        rows = np.frombuffer(data, dtype=np.uint8).reshape(-1, record)
        labels = rows[:, label_bytes - 1].astype(np.int64)
        _check_labels(path, labels, len(class_names))
        arrays.append((rows[:, label_bytes:].reshape(-1, *shape), labels))
    return class_names, arrays


def read_digits(path: Path) -> Arrays:
    """scikit-learn's digits: lines of 64 values from 0 to 16 and a label. 16 becomes 255."""
    with _unpacking(path) as stream:
        text = stream.read(1_000_001)
    try:
        if not 0 < len(text) <= 1_000_000:
            raise ValueError("not between 1 and 1,000,000 bytes")
        rows = np.loadtxt(text.decode("ascii").splitlines(), delimiter=",", dtype=np.int64, ndmin=2)
        if rows.shape[1] != 65 or rows[:, :64].min() < 0 or rows[:, :64].max() > 16:
            raise ValueError("lines are not 64 values from 0 to 16 and a label")
    except ValueError as error:
        raise _bad(path, f"cannot be read ({error})") from None
    _check_labels(path, rows[:, 64], 10)
    return ((rows[:, :64] * 255 + 8) // 16).astype(np.uint8).reshape(-1, 1, 8, 8), rows[:, 64]


@contextmanager
def _unpacking(path: Path) -> Iterator[gzip.GzipFile]:
    try:
        with gzip.open(path) as stream:
            yield stream
    except (OSError, EOFError, zlib.error) as error:
        raise _bad(path, f"is damaged ({error})") from None


def _check_labels(path: Path, labels: np.ndarray, classes: int) -> None:
    if labels.min() < 0 or labels.max() >= classes:
        raise _bad(
            path,
            f"holds a label {labels.max() if labels.max() >= classes else labels.min()}; there are {classes} classes",
        )


def _bad(path: Path, what: str) -> BadInput:
    return BadInput(what, where=str(path), remedy=REMEDY)
