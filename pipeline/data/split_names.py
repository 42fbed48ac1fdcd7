"""Names of folders, arrays and values that mean a split: ``train``, ``Testing``, ``seg_train``, ``y_val``."""

import re
from collections.abc import Collection

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn", "trainset", "trainingset"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "valset", "validationset"), "validation"),
    **dict.fromkeys(("test", "testing", "tst", "testset", "testingset"), "test"),
}


def split_of(name: str) -> str | None:
    """The split that a name means, with any prefix and suffix; None if it means none or several."""
    found = {SPLIT_WORDS[word] for word in _words(name) if word in SPLIT_WORDS}
    return found.pop() if len(found) == 1 else None


def is_split(name: str) -> bool:
    """Whether a name is that of a split, in any case, without prefix and suffix."""
    return name.lower() in SPLIT_WORDS


def are_splits(names: Collection[str]) -> bool:
    """Whether the names are those of training and other splits, and have at most one prefix or suffix."""
    splits = {split_of(name) for name in names}
    rests = {tuple(word for word in _words(name) if word not in SPLIT_WORDS) for name in names} - {()}
    return len(splits) > 1 and "train" in splits and None not in splits and len(rests) < 2


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+(?![a-z])", name)]
