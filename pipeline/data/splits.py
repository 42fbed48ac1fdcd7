"""Divide the images into train, validation and test: random by seed, stratified by class.

An image with a name keeps its split when other images are added, and so does a group of images. So no model
is tested on images that an earlier model was trained on.
"""

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Protocol

import numpy as np

from pipeline.errors import BadInput, listed

MIN_IMAGES = 5  # of a class, if it has to be divided


class Drawing(Protocol):
    """How splits are drawn: a seed, and fractions of the images of 'train' and of all images."""

    @property
    def seed(self) -> int: ...
    @property
    def validation_fraction(self) -> float: ...
    @property
    def test_fraction(self) -> float: ...


def divide(
    labels: dict[str, np.ndarray],
    class_names: tuple[str, ...],
    settings: Drawing,
    names: Sequence[str] = (),
    groups: Sequence[str] = (),
) -> dict[str, tuple[str, np.ndarray]]:
    """For train, validation and test: the source's split of the images, and their indices in it, ascending.

    ``labels`` has the labels of the source's splits. These splits are kept. Missing ones are drawn from
    'train': by the images' ``groups``, which stay together, or ``names`` if there are any, else by their
    indices.
    """
    counts = np.bincount(labels["train"], minlength=len(class_names)).tolist()
    few = [f"'{name}' has {count}" for name, count in zip(class_names, counts) if count < MIN_IMAGES]
    if few and len(labels) < 3:
        what = f"classes have too few images to divide them; {MIN_IMAGES} are needed: {listed(few)}"
        remedy = f"add images, or leave such classes out: data.min_images_per_class: {MIN_IMAGES}"
        raise BadInput(what, where="data", remedy=remedy)
    remaining = np.arange(len(labels["train"]))
    parts = {split: (split, np.arange(len(members))) for split, members in labels.items()}
    for split, fraction in (("test", settings.test_fraction), ("validation", settings.validation_fraction)):
        if split not in labels:
            key, some = (settings.seed, split), groups or names
            remaining_names = [some[index] for index in remaining.tolist()] if some else []
            draw = partial(_draw, len(class_names))
            if groups:
                left = 1 + (split == "test" and "validation" not in labels)
                draw = partial(_draw_groups, class_names, left)
            drawn = draw(labels["train"][remaining], fraction, key, remaining_names)
            parts[split] = ("train", remaining[drawn])
            remaining = np.delete(remaining, drawn)
    parts["train"] = ("train", remaining)
    return {split: parts[split] for split in ("train", "validation", "test")}


def _draw_groups(
    class_names: Sequence[str],
    num_left: int,
    labels: np.ndarray,
    fraction: float,
    key: tuple[int, str],
    groups: Sequence[str],
) -> np.ndarray:
    """Ascending indices of the images in about ``fraction`` of the groups.

    Of each class at least one group is chosen and ``num_left`` are left. A pure function of its arguments.
    Raises ``BadInput`` for classes with too few groups.
    """
    ranks = {group: _rank((*key, group)) for group in {*groups}}
    chosen = {group for group, rank in ranks.items() if rank < fraction}
    by_class = [
        {groups[index] for index in np.flatnonzero(labels == label).tolist()}
        for label in range(len(class_names))
    ]
    for own in by_class:
        if not own & chosen:
            chosen.add(min(own, key=ranks.__getitem__))
    for own in by_class:
        for group in sorted(own & chosen, key=ranks.__getitem__)[1:][::-1]:
            if len(own - chosen) < num_left:
                chosen.remove(group)
    few = [
        f"'{name}'"
        for name, own in zip(class_names, by_class)
        if not own & chosen or len(own - chosen) < num_left
    ]
    if few:
        what = f"classes have too few groups to divide them: {listed(few)}"
        raise BadInput(what, where="params.yaml: data.group", remedy="add groups or remove the classes")
    return np.flatnonzero([group in chosen for group in groups])


def _draw(
    classes: int, labels: np.ndarray, fraction: float, key: tuple[int, str], names: Sequence[str]
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
