"""Folders and archives of pictures: list their files, read them."""

import functools
import os
import re
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from pipeline.data.archives import MAX_FILE_BYTES, Archive, Listing, Tar, Zip
from pipeline.data.arrays import Arrays
from pipeline.errors import BadInput

OWN = Path("data/own")  # what a user adds; a dependency of DVC stages
EXPERIMENTS = Path(".dvc/tmp/exps")  # where `dvc exp run --temp` and `--queue` run
PICTURES = "pictures"  # in data/raw: the copy of the user's folder; with one of these suffixes, of an archive
ARCHIVES = (".zip", ".tar", ".npz", ".npy")
SYSTEM = "hidden, or made by the operating system"
SYSTEM_NAMES = {
    *("__macosx", "@eadir", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "system volume information"),
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "lost+found", "icon\r"),
}
DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, OSError, EOFError, ValueError, RuntimeError, zlib.error),
    MemoryError,  # the size in the header of an array
)
DVC_CACHE = re.compile(r".*/files/md5/[0-9a-f]{2}/[0-9a-f]{30}")


class Folder(Listing):
    """The files below a folder. Links to files in DVC's cache are followed, others must stay within."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root, self._home = f"{root}/", f"{root.resolve()}/"
        self._outside, self._missing = list[str](), list[str]()
        self._walk("")
        remedy = "replace them by the files themselves"
        self.fault("contains links to folders or to files outside", self._outside, remedy)
        self.fault("contains links to files that are missing", self._missing, "restore or remove them")
        self.files.sort()
        self.folders.sort()

    def _walk(self, parent: str) -> None:
        try:
            entries = list(os.scandir(self._root + parent))
        except OSError as error:
            what, where = f"cannot be read ({error.strerror})", self._root + parent
            raise BadInput(what, where=where, remedy="check its permissions") from None
        for entry in entries:
            name = parent + entry.name
            if is_system(entry.name):
                self.skip(SYSTEM, [name])
            elif entry.is_dir(follow_symlinks=False):
                self.folders.append(name)
                self._walk(f"{name}/")
            elif entry.is_symlink() and not self._is_inside(name):
                self._outside.append(name)
            elif os.path.isfile(entry):  # False for a link to itself, where entry.is_file() raises
                self.files.append(name)
            elif entry.is_symlink():
                self._missing.append(name)

    def _is_inside(self, name: str) -> bool:
        target = os.path.realpath(self._root + name)
        return (target.startswith(self._home) or bool(DVC_CACHE.fullmatch(target))) and not os.path.isdir(
            target
        )


def is_system(name: str) -> bool:
    """Whether the name of a file or folder, without its parents, is hidden or one that systems use."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def list_files(root: Path) -> Listing:
    """The regular files and the folders in a folder or archive.

    Raises ``BadInput`` if it cannot be read, or is no archive. Links to folders, duplicates, encrypted and
    oversized files, and names that lead outside are faults of the listing.
    """
    return Folder(root) if root.is_dir() else open_archive(root)


def open_archive(path: Path) -> Archive:
    """The zip, tar, .npz or .npy ``path``. Raises ``BadInput`` if it is none."""
    kind = path.suffix.lower()
    try:
        if kind in (".npz", ".npy"):
            return Arrays(path)
        if tarfile.is_tarfile(path):
            kind = "tar"
            return Tar(path)
        kind = "zip"
        return Zip(path)
    except DAMAGE as error:
        remedy = "download the archive again, or create it again"
        raise BadInput(f"is not a valid {kind} file ({error})", where=str(path), remedy=remedy) from None


def reader(path: Path) -> Callable[[str], bytes]:
    """A function that gives the bytes of a file in the folder or archive ``path``. Thread-safe.

    It raises ``ValueError`` for damage and for more than ``MAX_FILE_BYTES``. An archive that has changed is
    opened again only by another call of this function.
    """
    if path.is_dir():
        return functools.partial(_read, path)
    state = path.stat()
    with _lock:
        return _open(path, (state.st_ino, state.st_mtime_ns)).read


def read_file(path: Path, name: str) -> bytes:
    """The bytes of one file, as by :func:`reader`."""
    return reader(path)(name)


def _read(folder: Path, name: str) -> bytes:
    try:
        with open(f"{folder}/{name}", "rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
                raise ValueError(f"has more than {MAX_FILE_BYTES:,} bytes")
            return file.read()
    except FileNotFoundError:
        if not name.endswith("]") or not folder.exists():
            raise
    with _lock:  # a picture in an array
        return _open(folder, (0, 0)).read(name)


_lock = threading.Lock()


@functools.lru_cache(maxsize=1)
def _open(path: Path, version: tuple[int, int]) -> Archive:
    """The open archive; call it with the lock held.

    Threads share one, as its index takes 0.6 GB for a million files.
    """
    return Arrays(path) if path.is_dir() else open_archive(path)


def seen_by_dvc(origin: Path, root: Path) -> Path:
    """``origin``, or in the temporary copy of an experiment the same folder there, if it is in data/own.

    Raises ``BadInput`` if the copy lacks it. Else DVC would not notice that its pictures change, and
    would take the result of an earlier experiment for this one.
    """
    here = Path.cwd()
    if not (here.is_relative_to(root / EXPERIMENTS) and origin.absolute().is_relative_to(root / OWN)):
        return origin
    name = origin.absolute().relative_to(root)
    if not (here / name).exists():
        what = (
            "is tracked neither by git nor by DVC, so an experiment outside the workspace cannot depend on it"
        )
        add = f"dvc add {name} && git add {name}.dvc"
        remedy = f"run: {add}   (or run the experiment in the workspace: dvc exp run without --temp)"
        raise BadInput(what, where=str(name), remedy=remedy)
    return here / name
