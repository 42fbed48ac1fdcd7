"""Divide the images into train, validation and test: random by seed, stratified by class.

An image with a name keeps its split when other images are added. So no model is tested on images that an
earlier model was trained on.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from pipeline.data.settings import DataSettings
from pipeline.errors import BadInput, listed

MIN_IMAGES = 5  # of a class, if it has to be divided


def divide(
    labels: dict[str, np.ndarray],
    class_names: tuple[str, ...],
    settings: DataSettings,
    names: Sequence[str] = (),
) -> dict[str, tuple[str, np.ndarray]]:
    """For train, validation and test: the source's split of the images, and their indices in it, ascending.

    ``labels`` has the labels of the source's splits. These splits are kept. Missing ones are drawn from
    'train': by the images' ``names`` if there are any, else by their indices.
    """
    counts = np.bincount(labels["train"], minlength=len(class_names)).tolist()
    few = [f"'{name}' has {count}" for name, count in zip(class_names, counts) if count < MIN_IMAGES]
    if few and len(labels) < 3:
        what = f"classes have too few images to divide them; {MIN_IMAGES} are needed: {listed(few)}"
        raise BadInput(what, where="data", remedy="add images or remove the classes")
    remaining = np.arange(len(labels["train"]))
    parts = {split: (split, np.arange(len(members))) for split, members in labels.items()}
    for split, fraction in (("test", settings.test_fraction), ("validation", settings.validation_fraction)):
        if split not in labels:
            remaining_names = [names[index] for index in remaining.tolist()] if names else []
            key = (settings.seed, split)
            drawn = _draw(labels["train"][remaining], fraction, key, len(class_names), remaining_names)
            parts[split] = ("train", remaining[drawn])
            remaining = np.delete(remaining, drawn)
    parts["train"] = ("train", remaining)
    return {split: parts[split] for split in ("train", "validation", "test")}


def _draw(
    labels: np.ndarray, fraction: float, key: tuple[int, str], classes: int, names: Sequence[str]
) -> np.ndarray:
    """Ascending indices of about ``fraction`` of each class, at least one.

    A pure function of the key, the labels and the names.
    """
    chosen = []
    for label in range(classes):
        members = np.flatnonzero(labels == label)
        if names:
            ranks = np.array([_rank((*key, names[index])) for index in members.tolist()])
            # At most all but two, so that a very small class still has images for the other splits.
            count = min(max(1, int((ranks < fraction).sum())), max(1, len(members) - 2))
        else:
            digest = hashlib.sha256(repr((*key, label)).encode()).digest()
            generator = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
            ranks = generator.random_raw(len(members))  # the raw values are the same in all versions of NumPy
            count = max(1, round(len(members) * fraction))
        chosen.append(members[np.argsort(ranks, kind="stable")[:count]])
    return np.sort(np.concatenate(chosen))


def _rank(key: tuple[int, str, str]) -> float:
    """A number in [0, 1) that depends only on the key."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:6], "little") / 2**48
