"""Pictures in a folder or zip, a sub-folder for each class: which files belong to which split and class."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.data.images import REFUSED_SUFFIXES, SUFFIXES
from pipeline.errors import BadInput

PICTURES = "pictures"  # in data/raw: a user's folder, or PICTURES.zip
SPLIT_NAMES = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
REMEDY = "make a folder for each class, or train/ and test/ with a folder for each class in them"


@dataclass(frozen=True)
class Layout:
    """Class names in alphabetical order and, for each split that the folder has, the names and labels of its files, sorted."""

    class_names: tuple[str, ...]
    splits: dict[str, list[tuple[str, int]]]


def list_folder(root: Path) -> tuple[list[str], list[str]]:
    """The names, relative to ``root`` and sorted, of its regular files and folders. Links may not lead outside ``root``."""
    files, folders, home = [], [], root.resolve()
    for parent, directories, names in os.walk(root, onerror=_refuse):
        directories[:] = [name for name in directories if not name.startswith(".")]
        for name in [*directories, *names]:
            path = Path(parent, name)
            if path.is_symlink() and not path.resolve().is_relative_to(home):
                raise BadInput(
                    "is a link that leads outside the folder",
                    where=str(path),
                    remedy="put the file itself there",
                )
            if path.is_symlink() and path.is_dir():
                raise BadInput("is a link to a folder", where=str(path), remedy="put the folder itself there")
        folders += [Path(parent, name).relative_to(root).as_posix() for name in directories]
        files += [
            Path(parent, name).relative_to(root).as_posix() for name in names if Path(parent, name).is_file()
        ]
    return sorted(files), sorted(folders)


def arrange(files: Iterable[str], folders: Iterable[str], where: str) -> Layout:
    """The layout that the names show: ``class/...`` or ``train/class/...`` beside ``test/`` and ``val/`` (or ``validation/``).

    Hidden files and files that are no pictures by their suffix are passed over, and so is one folder around everything.
    Raises ``BadInput``, with ``where`` for the folder, for whatever would leave a class or split without pictures.
    """
    pictures = [name for name in files if _is_picture(name, where)]
    seen = sorted(folder for folder in folders if not _is_hidden(folder))
    if not pictures:
        raise BadInput("holds no pictures (PNG, JPEG, BMP, WebP)", where=where, remedy=REMEDY)
    depth = 0  # folders around everything, which are no classes
    while (
        len({name.split("/")[depth] for name in pictures}) == 1
        and min(name.count("/") for name in pictures) > depth + 1
    ):
        depth += 1
    for name in pictures:
        if name.count("/") <= depth:
            raise BadInput(f"'{name}' lies in no class's folder", where=where, remedy=REMEDY)
    tops = {name.split("/")[depth] for name in pictures}
    divided = bool(tops & SPLIT_NAMES.keys())
    if divided and not ("train" in tops and tops <= SPLIT_NAMES.keys() and {"val", "validation"} - tops):
        raise BadInput(
            f"has the folders {_some(tops)}: some look like splits, some like classes",
            where=where,
            remedy=REMEDY,
        )
    at = depth + divided
    splits: dict[str, list[tuple[str, str]]] = {}
    for name in pictures:
        parts = name.split("/")
        if len(parts) <= at + 1:
            raise BadInput(f"'{name}' lies in no class's folder", where=where, remedy=REMEDY)
        splits.setdefault(SPLIT_NAMES[parts[depth]] if divided else "train", []).append((name, parts[at]))
    classes = {label for members in splits.values() for _, label in members}
    empty = {folder for folder in seen if folder.count("/") == at} - {
        "/".join(name.split("/")[: at + 1]) for name in pictures
    }
    if empty:
        raise BadInput(
            f"the class folder {_some(empty)} holds no pictures", where=where, remedy="fill it or remove it"
        )
    if len(classes) < 2:
        raise BadInput(
            f"holds one class only, {_some(classes)}", where=where, remedy="add a folder for a second class"
        )
    for lower, count in Counter(label.lower() for label in classes).items():
        if count > 1:
            raise BadInput(
                f"has classes that differ in case only ('{lower}')", where=where, remedy="rename or join them"
            )
    for split, members in splits.items():
        if missing := classes - {label for _, label in members}:
            raise BadInput(
                f"the split '{split}' has no pictures of the class {_some(missing)}",
                where=where,
                remedy="add some or remove the class",
            )
    labels = {label: number for number, label in enumerate(sorted(classes))}
    return Layout(
        tuple(labels),
        {
            split: sorted((name, labels[label]) for name, label in members)
            for split, members in splits.items()
        },
    )


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _is_picture(name: str, where: str) -> bool:
    suffix = PurePosixPath(name).suffix.lower()
    if _is_hidden(name) or suffix not in SUFFIXES | REFUSED_SUFFIXES:
        return False
    if suffix in REFUSED_SUFFIXES:
        raise BadInput(
            f"'{name}' is of a format that is not read", where=where, remedy="convert it to PNG or JPEG"
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        raise BadInput(f"{name!r} is not a UTF-8 name", where=where, remedy="rename the file") from None
    return True


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(f"'{name}'" for name in listed[:3]) + (
        f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    )


def _refuse(error: OSError) -> None:
    raise BadInput(
        f"cannot be read ({error.strerror})", where=str(error.filename), remedy="grant access to it"
    )
