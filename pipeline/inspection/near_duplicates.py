"""Groups of pictures that look alike, wherever they are."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.data.near_duplicates import find_pairs, perceptual_hashes
from pipeline.inspection.measurements import Picture

MAX_GROUPS = 100  # that are listed


class _Pictures:
    """Some of the pictures, as ``find_pairs`` reads them."""

    def __init__(self, looks: np.ndarray, hashes: np.ndarray) -> None:
        self.looks, self.hashes = looks, hashes

    def __getitem__(self, row: int) -> np.ndarray:
        return self.looks[row]


def find_groups(pictures: Sequence[Picture], splits: Mapping[str, str]) -> dict[str, Any]:
    """Groups of near-duplicates, those in several classes or splits first.

    ``splits`` has the splits by the names of the pictures.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if len(pictures) < 2:
        return {"count": 0, "groups": []}
    looks = np.stack([picture.look for picture in pictures if picture.look is not None])
    hashes = perceptual_hashes(looks)
    rows, others = list[int](), list[int]()
    numbers = np.arange(len(looks))
    for bit in range(int(len(looks) - 1).bit_length()):
        # Two different numbers differ in at least one bit, so every pair is compared.
        zeros, ones = np.flatnonzero(numbers >> bit & 1 == 0), np.flatnonzero(numbers >> bit & 1)
        earlier, later = (_Pictures(looks[some], hashes[some]) for some in (zeros, ones))
        for pair in find_pairs(earlier, later):  # type: ignore[arg-type]
            rows.append(int(ones[pair.row]))
            others.append(int(zeros[pair.earlier]))
    links = coo_array((np.ones(len(rows)), (rows, others)), shape=(len(looks), len(looks)))
    _, labels = connected_components(links, directed=False)
    order = np.argsort(labels, kind="stable")
    groups = [
        group for group in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(group) > 1
    ]
    described = [_described([pictures[row] for row in group.tolist()], splits) for group in groups]
    described.sort(key=lambda group: (len(group["classes"]), len(group["splits"])), reverse=True)
    return {
        "count": len(groups),
        "across_classes": sum(len(group["classes"]) > 1 for group in described),
        "across_splits": sum(len(group["splits"]) > 1 for group in described),
        "groups": described[:MAX_GROUPS],
    }


def _described(group: Sequence[Picture], splits: Mapping[str, str]) -> dict[str, Any]:
    return {
        "pictures": [picture.entry.path for picture in group],
        "classes": sorted({picture.entry.label for picture in group}),
        "splits": sorted({splits.get(picture.entry.path, "") for picture in group}),
    }
