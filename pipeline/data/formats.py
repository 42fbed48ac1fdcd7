"""Readers for published data sets: IDX (MNIST and similar), binary CIFAR, scikit-learn's digits.

All return uint8 images (N, C, H, W) and int64 labels (N,), and raise ``BadInput`` for invalid files.
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
MAX_BYTES = 200_000_000  # of one unpacked file
Arrays = tuple[np.ndarray, np.ndarray]


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The uint8 array of a gzipped IDX file.

    The format: bytes 0, 0, 8 (uint8), number of dimensions; their lengths as big-endian uint32; the values.
    """
    with _unpacking(path) as stream:
        magic = stream.read(4)
        if magic != bytes([0, 0, 8, dimensions]):
            start = magic.hex(" ") or "nothing"
            raise _bad(
                path, f"is not an IDX file: it starts with {start}, not with 00 00 08 {dimensions:02x}"
            )
        header = stream.read(4 * dimensions)
        if len(header) < 4 * dimensions:
            raise _bad(path, "ends within its header")
        shape = struct.unpack(f">{dimensions}I", header)
        count = math.prod(shape)
        if count == 0:
            raise _bad(path, f"is empty: its header has the shape {shape}")
        if count > MAX_BYTES:
            raise _bad(path, f"has the shape {shape} in its header, more than {MAX_BYTES:,} bytes")
        data = bytearray()
        while len(data) < count and (chunk := stream.read(min(1 << 20, count - len(data)))):
            data += chunk
        if len(data) < count:
            raise _bad(path, f"is truncated: {len(data):,} of {count:,} bytes")
        if stream.read(1):
            raise _bad(path, f"has more than the {count:,} bytes of its header")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def read_idx_pair(images_path: Path, labels_path: Path, shape: tuple[int, int, int], classes: int) -> Arrays:
    """Grey images and their labels from a pair of IDX files."""
    images, labels = read_idx(images_path, 3)[:, None], read_idx(labels_path, 1).astype(np.int64)
    if images.shape[1:] != shape:
        raise _bad(images_path, f"contains images of {images.shape[1:]}, not {shape}")
    if len(images) != len(labels):
        what = f"contains {len(labels):,} labels for the {len(images):,} images of {images_path.name}"
        raise _bad(labels_path, what)
    _check_labels(labels_path, labels, classes)
    return images, labels


def read_cifar(
    path: Path, members: list[str], label_bytes: int, shape: tuple[int, int, int], names: str
) -> tuple[tuple[str, ...], list[Arrays]]:
    """The class names (from the member ``names``) and the arrays of ``members`` of a binary CIFAR archive.

    A record has ``label_bytes`` labels, of which the last is used, and the pixels, channel by channel.
    """
    found = read_tar(path, [*members, names], budget=MAX_BYTES)
    class_names = tuple(found[names].decode("ascii", "replace").split())
    if len(set(class_names)) != len(class_names) or len(class_names) < 2:
        raise _bad(path, f"has no distinct class names in '{names}'")
    record, arrays = label_bytes + math.prod(shape), []
    for member in members:
        data = found.pop(member)
        if not data or len(data) % record:
            what = f"contains '{member}' with {len(data):,} bytes, not a multiple of a record's {record:,}"
            raise _bad(path, what)
        rows = np.frombuffer(data, dtype=np.uint8).reshape(-1, record)
        labels = rows[:, label_bytes - 1].astype(np.int64)
        _check_labels(path, labels, len(class_names))
        arrays.append((rows[:, label_bytes:].reshape(-1, *shape), labels))
    return class_names, arrays


def read_digits(path: Path) -> Arrays:
    """scikit-learn's digits: lines of 64 values from 0 to 16 and a label. The values are scaled to 0..255."""
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
    for label in (labels.min(), labels.max()):
        if not 0 <= label < classes:
            raise _bad(path, f"contains the label {label}; there are {classes} classes")


def _bad(path: Path, what: str) -> BadInput:
    return BadInput(what, where=str(path), remedy=REMEDY)
