"""Which images train, validate and test: drawn once, by seed, each class by itself.

A picture that has a name keeps its split when others join it: a model was never trained on what tests its successor.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from pipeline.data.settings import DataSettings
from pipeline.errors import BadInput

MIN_IMAGES = 5  # of a class, where a split is drawn from it


def divide(
    labels: dict[str, np.ndarray],
    class_names: tuple[str, ...],
    settings: DataSettings,
    names: Sequence[str] = (),
) -> dict[str, tuple[str, np.ndarray]]:
    """For train, validation and test: the source's own split that its images come from, and their indices there, ascending.

    ``labels`` are those of the source's splits. One that it has is kept as it is; what it lacks is drawn from 'train', by the
    images' ``names`` where they have some, else by their place in it.
    """
    for name, count in zip(class_names, np.bincount(labels["train"], minlength=len(class_names)).tolist()):
        if count < MIN_IMAGES and len(labels) < 3:
            what = (
                f"the class '{name}' has {count} images, too few to draw splits from; {MIN_IMAGES} are needed"
            )
            raise BadInput(what, where="data", remedy="add images or remove the class")
    remaining = np.arange(len(labels["train"]))
    parts = {split: (split, np.arange(len(members))) for split, members in labels.items()}
    for split, fraction in (("test", settings.test_fraction), ("validation", settings.validation_fraction)):
        if split not in labels:
            rest = [names[index] for index in remaining.tolist()] if names else []
            drawn = _draw(
                labels["train"][remaining], fraction, (settings.seed, split), len(class_names), rest
            )
            parts[split] = ("train", remaining[drawn])
            remaining = np.delete(remaining, drawn)
    parts["train"] = ("train", remaining)
    return {split: parts[split] for split in ("train", "validation", "test")}


def _draw(
    labels: np.ndarray, fraction: float, key: tuple[int, str], classes: int, names: Sequence[str]
) -> np.ndarray:
    """Ascending indices of about ``fraction`` of each class, at least one; a function of the key, the labels and names alone."""
    chosen = []
    for label in range(classes):
        members = np.flatnonzero(labels == label)
        if names:
            ranks = np.array([_rank((*key, names[index])) for index in members.tolist()])
            count = min(
                max(1, int((ranks < fraction).sum())), max(1, len(members) - 2)
            )  # two are left, of a class with hardly any
        else:
            digest = hashlib.sha256(repr((*key, label)).encode()).digest()
            ranks = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(
                len(members)
            )  # raw: the same in every NumPy
            count = max(1, round(len(members) * fraction))
        chosen.append(members[np.argsort(ranks, kind="stable")[:count]])
    return np.sort(np.concatenate(chosen))


def _rank(key: tuple[int, str, str]) -> float:
    """A number in [0, 1) that the key alone decides."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:6], "little") / 2**48
