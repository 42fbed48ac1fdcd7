"""Find pictures of different splits that look alike: resized, encoded again or mirrored.

The perceptual hash is that of imagehash.phash (Zauner 2010), computed for many pictures at a time: the signs,
relative to their median, of the lowest 8 x 8 coefficients of the discrete cosine transform. Of four
segments of the hash one must be equal, and of all bits at most ``MAX_DISTANCE`` may differ; so all with up to
three other bits are found, and most with up to ``MAX_DISTANCE``. These are then compared by their pixels.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MAX_DISTANCE = 8  # bits
SEGMENTS = 4
MAX_BUCKET = 100  # pictures with an equal segment that are compared with each
MAX_CANDIDATES = 8  # of a picture, whose pixels are compared; one may be found by each segment
BLOCK = 1000  # pictures at a time: bounded memory
MAX_DIFFERENCE = 0.2  # mean squared difference of the pixels, relative to their variance
COEFFICIENTS = 8
COMPARED = 16  # about as many rows and columns of pixels are compared
MIRROR = (-1.0) ** np.arange(COEFFICIENTS, dtype=np.float32)  # signs of the horizontal frequencies


@dataclass(frozen=True)
class Pair:
    """Row ``row`` of a split looks like row ``earlier`` of an earlier one, or like its mirror image."""

    row: int
    earlier: int
    mirrored: bool


def perceptual_hashes(images: np.ndarray) -> np.ndarray:
    """Hashes of uint8 images (N, C, S, S) and of their mirror images: uint64 (N, 2)."""
    size = images.shape[-1]
    grey = images[:, 0].astype(np.float32)
    for channel in range(1, images.shape[1]):  # faster than a sum over the axis
        grey += images[:, channel]
    angles = np.outer(np.arange(size) + 0.5, np.arange(COEFFICIENTS)) * (np.pi / size)
    basis = np.cos(angles).astype(np.float32)
    spectrum = basis.T @ grey @ basis
    both = np.stack([spectrum, spectrum * MIRROR], axis=1).reshape(len(images), 2, COEFFICIENTS**2)
    bits = both > np.median(both, axis=2, keepdims=True)
    return np.packbits(bits, axis=2).view(np.uint64)[:, :, 0]


def find_pairs(earlier: "Pictures", later: "Pictures") -> list[Pair]:
    """For each picture of ``later`` the most similar one of ``earlier``, if it looks the same."""
    buckets = [_Bucket(earlier.hashes[:, 0], segment) for segment in range(SEGMENTS)]
    pairs = dict[int, Pair]()
    for start in range(0, len(later.hashes), BLOCK):
        for mirrored in (False, True):
            wanted = later.hashes[start : start + BLOCK, int(mirrored)]
            rows, others = map(np.concatenate, zip(*(bucket.find(wanted) for bucket in buckets)))
            distances = np.bitwise_count(wanted[rows] ^ earlier.hashes[others, 0])
            near = np.flatnonzero(distances <= MAX_DISTANCE)
            order = near[np.lexsort((others[near], distances[near], rows[near]))]
            rows = rows[order]
            first = np.searchsorted(rows, rows)  # of each row, to keep its nearest candidates
            kept = np.arange(len(rows)) - first < MAX_CANDIDATES
            for row, other in zip((start + rows[kept]).tolist(), others[order][kept].tolist()):
                if row not in pairs and _are_alike(earlier, other, later, row, mirrored):
                    pairs[row] = Pair(row, other, mirrored)
    return [pairs[row] for row in sorted(pairs)]


class Pictures:
    """The pictures of a split in the order of writing: their hashes, and their pixels in shards."""

    def __init__(self, folder: Path, shards: list[dict[str, Any]], hashes: np.ndarray) -> None:
        self.hashes = hashes
        self._shards = [np.load(folder / shard["image"]["file"], mmap_mode="r") for shard in shards]
        self._ends = np.cumsum([len(shard) for shard in self._shards])

    def __getitem__(self, row: int) -> np.ndarray:
        """The uint8 picture (C, S, S)."""
        number = int(np.searchsorted(self._ends, row, side="right"))
        return np.asarray(self._shards[number][row - self._ends[number]])


class _Bucket:
    """The hashes sorted by one segment of 16 bits."""

    def __init__(self, hashes: np.ndarray, segment: int) -> None:
        self._segment = segment
        keys = self._keys(hashes)
        self._order = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Indices of ``hashes`` and of the sorted ones with the same segment, at most ``MAX_BUCKET`` each."""
        keys = self._keys(hashes)
        first = np.searchsorted(self._sorted, keys, side="left")
        counts = np.minimum(np.searchsorted(self._sorted, keys, side="right") - first, MAX_BUCKET)
        rows = np.repeat(np.arange(len(keys)), counts)
        offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return rows, self._order[first[rows] + offsets]

    def _keys(self, hashes: np.ndarray) -> np.ndarray:
        return (hashes >> np.uint64(16 * self._segment)).astype(np.uint16)


def _are_alike(earlier: Pictures, other: int, later: Pictures, row: int, mirrored: bool) -> bool:
    every = max(1, later[row].shape[-1] // COMPARED)
    a, b = (picture[:, ::every, ::every].astype(np.float32) for picture in (earlier[other], later[row]))
    if mirrored:
        b = later[row][:, ::every, ::-1][:, :, ::every].astype(np.float32)
    return bool(((a - b) ** 2).mean() <= MAX_DIFFERENCE * (a.var() + b.var()) / 2)
