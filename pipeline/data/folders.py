"""Image files in a folder or zip with one sub-folder per class: find the split and class of each file."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.data.images import REFUSED_SUFFIXES, SUFFIXES
from pipeline.errors import BadInput

PICTURES = "pictures"  # in data/raw: the copy of the user's folder, or pictures.zip
SPLIT_NAMES = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
REMEDY = "create a folder for each class, or train/ and test/ with a folder for each class in both"


@dataclass(frozen=True)
class Layout:
    """Class names in alphabetical order, and for each split the names and labels of its files, sorted."""

    class_names: tuple[str, ...]
    splits: dict[str, list[tuple[str, int]]]


def list_folder(root: Path) -> tuple[list[str], list[str]]:
    """The relative names of the regular files and folders in ``root``, sorted.

    Raises ``BadInput`` for links to folders and for links that lead outside ``root``.
    """
    files, folders, resolved_root = [], [], root.resolve()
    for parent, directories, names in os.walk(root, onerror=_raise_unreadable):
        directories[:] = [name for name in directories if not name.startswith(".")]
        for name in [*directories, *names]:
            path = Path(parent, name)
            if path.is_symlink() and not path.resolve().is_relative_to(resolved_root):
                remedy = "replace it by the file itself"
                raise BadInput("is a link that leads outside the folder", where=str(path), remedy=remedy)
            if path.is_symlink() and path.is_dir():
                remedy = "replace it by the folder itself"
                raise BadInput("is a link to a folder", where=str(path), remedy=remedy)
        folders += [Path(parent, name).relative_to(root).as_posix() for name in directories]
        files += [
            Path(parent, name).relative_to(root).as_posix() for name in names if Path(parent, name).is_file()
        ]
    return sorted(files), sorted(folders)


def arrange(files: Iterable[str], folders: Iterable[str], where: str) -> Layout:
    """Find the layout: ``class/...``, or ``train/class/...`` and the same for test, val or validation.

    Hidden files, files without an image suffix, and enclosing folders are ignored. ``where`` names the folder
    in errors. Raises ``BadInput`` if a class or split would have no images, or if the layout is not clear.
    """
    pictures = [name for name in files if _is_picture(name, where)]
    seen = sorted(folder for folder in folders if not _is_hidden(folder))
    if not pictures:
        raise BadInput("contains no images (PNG, JPEG, BMP, WebP)", where=where, remedy=REMEDY)
    depth = 0  # number of enclosing folders, which are not classes
    while (
        len({name.split("/")[depth] for name in pictures}) == 1
        and min(name.count("/") for name in pictures) > depth + 1
    ):
        depth += 1
    for name in pictures:
        if name.count("/") <= depth:
            raise BadInput(f"'{name}' is not in a class folder", where=where, remedy=REMEDY)
    tops = {name.split("/")[depth] for name in pictures}
    divided = bool(tops & SPLIT_NAMES.keys())
    if divided and not ("train" in tops and tops <= SPLIT_NAMES.keys() and {"val", "validation"} - tops):
        what = f"contains the folders {_some(tops)}: some look like splits, some like classes"
        raise BadInput(what, where=where, remedy=REMEDY)
    at = depth + divided
    splits: dict[str, list[tuple[str, str]]] = {}
    for name in pictures:
        parts = name.split("/")
        if len(parts) <= at + 1:
            raise BadInput(f"'{name}' is not in a class folder", where=where, remedy=REMEDY)
        splits.setdefault(SPLIT_NAMES[parts[depth]] if divided else "train", []).append((name, parts[at]))
    classes = {label for members in splits.values() for _, label in members}
    empty = {folder for folder in seen if folder.count("/") == at} - {
        "/".join(name.split("/")[: at + 1]) for name in pictures
    }
    if empty:
        what = f"the class folder {_some(empty)} contains no images"
        raise BadInput(what, where=where, remedy="fill it or remove it")
    if len(classes) < 2:
        what = f"contains only one class, {_some(classes)}"
        raise BadInput(what, where=where, remedy="add a folder for a second class")
    for lower, count in Counter(label.lower() for label in classes).items():
        if count > 1:
            what = f"contains classes that differ only in case ('{lower}')"
            raise BadInput(what, where=where, remedy="rename or merge them")
    for split, members in splits.items():
        if missing := classes - {label for _, label in members}:
            what = f"the split '{split}' has no images of the class {_some(missing)}"
            raise BadInput(what, where=where, remedy="add some or remove the class")
    labels = {label: number for number, label in enumerate(sorted(classes))}
    numbered = {
        split: sorted((name, labels[label]) for name, label in members) for split, members in splits.items()
    }
    return Layout(tuple(labels), numbered)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _is_picture(name: str, where: str) -> bool:
    suffix = PurePosixPath(name).suffix.lower()
    if _is_hidden(name) or suffix not in SUFFIXES | REFUSED_SUFFIXES:
        return False
    if suffix in REFUSED_SUFFIXES:
        what = f"'{name}' has a format that is not supported"
        raise BadInput(what, where=where, remedy="convert it to PNG or JPEG")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise BadInput(f"the name {name!r} is not UTF-8", where=where, remedy="rename the file") from None
    return True


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(f"'{name}'" for name in listed[:3]) + (
        f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    )


def _raise_unreadable(error: OSError) -> None:
    remedy = "check its permissions"
    raise BadInput(f"cannot be read ({error.strerror})", where=str(error.filename), remedy=remedy)
