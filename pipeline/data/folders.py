"""Image files in a folder or zip with one sub-folder per class: list them, find their classes, read them."""

import functools
import os
import stat
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.data.images import REFUSED_SUFFIXES, SUFFIXES
from pipeline.errors import BadInput, listed

PICTURES = "pictures"  # in data/raw: the copy of the user's folder, or pictures.zip
MAX_FILE_BYTES = 256_000_000
SPLIT_NAMES = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
REMEDY = "create a folder for each class, or train/ and test/ with a folder for each class in both"


@dataclass(frozen=True)
class Layout:
    """Class names in alphabetical order, and for each split the names and labels of its files, sorted."""

    class_names: tuple[str, ...]
    splits: dict[str, list[tuple[str, int]]]


class _Faults(list[tuple[str, str]]):
    """What is wrong, and the remedy."""

    def note(self, what: str, names: Iterable[str], remedy: str) -> None:
        """Add a fault that these names have, if there are any."""
        if some := sorted(names):
            self.append((f"{what}: {listed(map(repr, some))}", remedy))

    def refuse(self, where: str) -> None:
        """Raise ``BadInput`` with all faults, if there are any."""
        if self:
            remedies = dict.fromkeys(remedy for _, remedy in self)
            raise BadInput("; ".join(what for what, _ in self), where=where, remedy="; ".join(remedies))


def list_files(root: Path) -> tuple[list[str], list[str]]:
    """The relative names of the regular files and of the folders in a folder or zip, sorted.

    Raises ``BadInput`` for damage, duplicates, encrypted or oversized files, for links to folders, and for
    names and links that lead outside ``root``.
    """
    if not root.is_dir():
        return _list_zip(root)
    files, folders, links, resolved_root = [], [], [], root.resolve()
    for parent, directories, names in os.walk(root, onerror=_raise_unreadable):
        directories[:] = [name for name in directories if not name.startswith(".")]
        folder = Path(parent)
        for path in map(folder.joinpath, [*directories, *names]):
            if path.is_symlink() and (path.is_dir() or not path.resolve().is_relative_to(resolved_root)):
                links.append(path.relative_to(root).as_posix())
        folders += [(folder / name).relative_to(root).as_posix() for name in directories]
        files += [(folder / name).relative_to(root).as_posix() for name in names if (folder / name).is_file()]
    faults = _Faults()
    faults.note(
        "contains links to folders or to files outside", links, "replace them by the files themselves"
    )
    faults.refuse(str(root))
    return sorted(files), sorted(folders)


def _list_zip(path: Path) -> tuple[list[str], list[str]]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError) as error:
        remedy = "download the archive again"
        raise BadInput(f"is not a valid zip file ({error})", where=str(path), remedy=remedy) from None
    names = [member.filename for member in members]
    encrypted = [member.filename for member in members if member.flag_bits & 1]
    regular = (0, stat.S_IFREG, stat.S_IFDIR)
    special = [one.filename for one in members if stat.S_IFMT(one.external_attr >> 16) not in regular]
    large = [member.filename for member in members if member.file_size > MAX_FILE_BYTES]
    files = Counter(member.filename for member in members if not member.is_dir())
    twice = [name for name, count in files.items() if count > 1]
    faults = _Faults()
    faults.note("contains names that lead outside", filter(leads_outside, names), "do not trust this archive")
    faults.note("contains encrypted files", encrypted, "create the zip without a password")
    faults.note("contains links or devices", special, "zip the files themselves")
    faults.note(f"contains files of more than {MAX_FILE_BYTES:,} bytes", large, "leave them out")
    faults.note("contains files twice", twice, "create the zip again")
    faults.refuse(str(path))
    return sorted(files), sorted({name.rstrip("/") for name in names} - files.keys())


def leads_outside(name: str) -> bool:
    """Whether a name in an archive is not a plain relative path."""
    parts = PurePosixPath(name).parts
    return not parts or name[0] == "/" or ".." in parts or "\\" in name or ":" in parts[0] or "\0" in name


def read_file(path: Path, name: str) -> bytes:
    """The bytes of a file in the folder or zip ``path``. Thread-safe.

    Raises ``ValueError`` for damage and for more than ``MAX_FILE_BYTES``.
    """
    if path.is_dir():
        if (path / name).stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"has more than {MAX_FILE_BYTES:,} bytes")
        return (path / name).read_bytes()
    try:
        with _lock:  # zipfile does not lock the opening and closing of members itself
            stream = _open_zip(path, (path.stat().st_ino, path.stat().st_mtime_ns)).open(name)
        try:
            data = stream.read(MAX_FILE_BYTES + 1)  # in parallel
        finally:
            with _lock:
                stream.close()
    except (KeyError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise ValueError(f"cannot be unpacked ({error})") from None
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"unpacks to more than {MAX_FILE_BYTES:,} bytes")
    return data


_lock = threading.Lock()


@functools.lru_cache(maxsize=1)
def _open_zip(path: Path, version: tuple[int, int]) -> zipfile.ZipFile:
    """The open archive; call it with the lock held.

    Threads share one, as its index takes 0.6 GB for a million files.
    """
    return zipfile.ZipFile(path)


def arrange(files: Iterable[str], folders: Iterable[str], where: str) -> Layout:
    """Find the layout: ``class/...``, or ``train/class/...`` and the same for test, val or validation.

    Hidden files, files without an image suffix, and enclosing folders are ignored. ``where`` names the folder
    in errors. Raises ``BadInput`` if a class or split would have no images, or if the layout is not clear.
    """
    faults = _Faults()
    files = [name for name in files if not _is_hidden(name)]
    other = [name for name in files if _suffix(name) in REFUSED_SUFFIXES]
    faults.note("contains files in formats that are not supported", other, "convert them to PNG or JPEG")
    pictures = [name for name in files if _suffix(name) in SUFFIXES]
    garbled = [name for name in pictures if name.encode(errors="replace").decode() != name]
    faults.note("contains names that are not UTF-8", garbled, "rename the files")
    if not pictures:
        faults.append(("contains no images (PNG, JPEG, BMP, WebP)", REMEDY))
        faults.refuse(where)
    depth = 0  # number of enclosing folders, which are not classes
    while (
        len({name.split("/")[depth] for name in pictures}) == 1
        and min(name.count("/") for name in pictures) > depth + 1
    ):
        depth += 1
    tops = {name.split("/")[depth] for name in pictures if name.count("/") > depth}
    divided = bool(tops & SPLIT_NAMES.keys())
    if divided and not ("train" in tops and tops <= SPLIT_NAMES.keys() and {"val", "validation"} - tops):
        faults.note("contains folders of which some look like splits, some like classes", tops, REMEDY)
        faults.refuse(where)
    at = depth + divided
    loose = [name for name in pictures if name.count("/") <= at]
    faults.note("contains images that are not in a class folder", loose, REMEDY)
    splits: dict[str, list[tuple[str, str]]] = {}
    for name in pictures:
        parts = name.split("/")
        if len(parts) > at + 1:
            split = SPLIT_NAMES[parts[depth]] if divided else "train"
            splits.setdefault(split, []).append((name, parts[at]))
    classes = {label for members in splits.values() for _, label in members}
    used = {"/".join(name.split("/")[: at + 1]) for name in pictures}
    empty = {name for name in folders if name.count("/") == at and not _is_hidden(name)} - used
    faults.note("contains class folders without images", empty, "fill or remove them")
    if len(classes) == 1:
        faults.note("contains only one class", classes, "add a folder for a second class")
    lower = Counter(label.lower() for label in classes)
    alike = [label for label in classes if lower[label.lower()] > 1]
    faults.note("contains classes that differ only in case", alike, "rename or merge them")
    for split, members in splits.items():
        missing = classes - {label for _, label in members}
        faults.note(f"has no images in the split '{split}' of the classes", missing, "add some")
    faults.refuse(where)
    labels = {label: number for number, label in enumerate(sorted(classes))}
    numbered = {
        split: sorted((name, labels[label]) for name, label in members) for split, members in splits.items()
    }
    return Layout(tuple(labels), numbered)


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _raise_unreadable(error: OSError) -> None:
    remedy = "check its permissions"
    raise BadInput(f"cannot be read ({error.strerror})", where=str(error.filename), remedy=remedy)
