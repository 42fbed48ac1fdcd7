"""Readers for published data sets: IDX (MNIST and similar), binary CIFAR, scikit-learn's digits.

Archives are read into memory, safely: regular files only, no names that lead outside, a limited size. The
extraction of tarfile is not used: its filters have had vulnerabilities (CVE-2025-4517, -4330, -4435).

Readers return uint8 images (N, C, H, W) and int64 labels (N,), and raise ``BadInput`` for invalid files.
"""

import gzip
import io
import math
import tarfile
import zlib
from collections.abc import Collection
from pathlib import Path

import numpy as np

from pipeline.data.archives import leads_outside
from pipeline.errors import BadInput

MAX_BYTES = 200_000_000  # of one unpacked file
Arrays = tuple[np.ndarray, np.ndarray]


def read_gzip(path: Path, max_bytes: int) -> bytes:
    """The unpacked bytes of a gzip file. Raises ``BadInput`` for damage and for more than ``max_bytes``."""
    try:
        with gzip.open(path) as stream:
            data = stream.read(max_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise _bad(path, f"is damaged ({error})") from None
    if len(data) > max_bytes:
        raise _bad(path, f"unpacks to more than the {max_bytes:,} bytes that are allowed")
    return data


def read_tar(path: Path, wanted: Collection[str], max_bytes: int) -> dict[str, bytes]:
    """Read the members ``wanted`` of a .tar.gz that unpacks to at most ``max_bytes``.

    Raises ``BadInput`` for links, devices, names that lead outside, missing or duplicate members, and damage.
    """
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(read_gzip(path, max_bytes)), mode="r:") as archive:
            for member in archive:
                if leads_outside(member.name):
                    raise _bad(path, f"contains '{member.name}', a name that leads outside the folder")
                if not (member.isreg() or member.isdir()):
                    raise _bad(path, f"contains '{member.name}', which is not a regular file")
                if member.name in found:
                    raise _bad(path, f"contains '{member.name}' twice")
                content = archive.extractfile(member) if member.name in wanted else None
                if content:
                    found[member.name] = content.read()
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise _bad(path, f"is damaged ({error})") from None
    if missing := [name for name in wanted if name not in found]:
        raise _bad(path, f"has no member '{missing[0]}'")
    return found


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The uint8 array of a gzipped IDX file.

    The format: bytes 0, 0, 8 (uint8), number of dimensions; their lengths as big-endian uint32; the values.
    """
    data, start = read_gzip(path, MAX_BYTES), 4 + 4 * dimensions
    if data[:4] != bytes([0, 0, 8, dimensions]):
        found = data[:4].hex(" ") or "nothing"
        raise _bad(path, f"is not an IDX file: it starts with {found}, not with 00 00 08 {dimensions:02x}")
    if len(data) < start:
        raise _bad(path, "ends within its header")
    shape = np.frombuffer(data[4:start], ">u4").tolist()
    if len(data) - start != math.prod(shape) or len(data) == start:
        raise _bad(path, f"has {len(data) - start:,} bytes of values, but the shape {shape} in its header")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


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
    path: Path, splits: dict[str, list[str]], label_bytes: int, shape: tuple[int, int, int], names: str
) -> tuple[tuple[str, ...], dict[str, Arrays]]:
    """The class names (from the member ``names``) and the arrays of a binary CIFAR archive by split.

    ``splits`` names the members of each split. A record has ``label_bytes`` labels, of which the last is
    used, and the pixels, channel by channel.
    """
    members = [member for split in splits.values() for member in split]
    found = read_tar(path, [*members, names], max_bytes=MAX_BYTES)
    class_names = tuple(found[names].decode("ascii", "replace").split())
    if len(set(class_names)) != len(class_names) or len(class_names) < 2:
        raise _bad(path, f"has no distinct class names in '{names}'")
    record, arrays = label_bytes + math.prod(shape), {}
    for member in members:
        if not found[member] or len(found[member]) % record:
            size = f"{len(found[member]):,} bytes, not a multiple of a record's {record:,}"
            raise _bad(path, f"contains '{member}' with {size}")
    for split, parts in splits.items():
        rows = np.frombuffer(b"".join(map(found.pop, parts)), dtype=np.uint8).reshape(-1, record)
        labels = rows[:, label_bytes - 1].astype(np.int64)
        _check_labels(path, labels, len(class_names))
        arrays[split] = (rows[:, label_bytes:].reshape(-1, *shape), labels)
    return class_names, arrays


def read_digits(path: Path) -> Arrays:
    """scikit-learn's digits: lines of 64 values from 0 to 16 and a label. The values are scaled to 0..255."""
    lines = read_gzip(path, 1_000_000).decode("ascii", "replace").split()
    try:
        rows = np.array([line.split(",") for line in lines], np.int64).reshape(-1, 65)
        values, labels = rows[:, :64], rows[:, 64]
        if values.min() < 0 or values.max() > 16:
            raise ValueError("a value is out of range")
    except ValueError as error:
        raise _bad(path, f"is not lines of 64 values from 0 to 16 and a label ({error})") from None
    _check_labels(path, labels, 10)
    return ((values * 255 + 8) // 16).astype(np.uint8).reshape(-1, 1, 8, 8), labels


def _check_labels(path: Path, labels: np.ndarray, classes: int) -> None:
    for label in (labels.min(), labels.max()):
        if not 0 <= label < classes:
            raise _bad(path, f"contains the label {label}; there are {classes} classes")


def _bad(path: Path, what: str) -> BadInput:
    return BadInput(what, where=str(path), remedy="remove it and run the stage 'download' again")
