"""Atomic writes of files and folders, and SHA-256 digests."""

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

HASHES = "sha256.json"


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """Hex SHA-256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def digest_of_tree(paths: list[Path], root: Path) -> str:
    """One digest for files and folders (their ``.py`` files), by relative name and bytes."""
    files = sorted(file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path]))
    return digest_of({file.relative_to(root).as_posix(): sha256(file) for file in files})


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file in ``folder``, by relative name; not of sha256.json."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    names = {file.relative_to(folder).as_posix(): file for file in sorted(files)}
    return {name: sha256(file) for name, file in names.items() if name != HASHES}


def write_hashes(folder: Path) -> None:
    """Write ``sha256.json``: what :func:`hashes` returns."""
    write_json(folder / HASHES, hashes(folder))


def check_hashes(folder: Path, ignored: str = "") -> tuple[str, str, str] | None:
    """The first file that does not match ``sha256.json``: its name, recorded and found SHA-256; None if none.

    ``ignored``: the name of a file that may be added later. A folder without ``sha256.json`` was written by
    an earlier version of Darkroom: it has nothing to compare.
    """
    if not (folder / HASHES).is_file():
        return None
    try:
        recorded, found = dict[str, str](read_json(folder / HASHES)), hashes(folder)
    except (ValueError, TypeError):
        return HASHES, "", ""
    pairs = ((name, recorded.get(name, ""), found.get(name, "")) for name in sorted(recorded | found))
    first = next((pair for pair in pairs if pair[1] != pair[2] and pair[0] != ignored), None)
    lost, added = recorded.keys() - found.keys(), found.keys() - recorded.keys()
    is_renamed = {recorded[name] for name in lost} & {found[name] for name in added}
    if first and (differ_in_one(*first[1:]) or is_renamed & {*first[1:]}):
        return HASHES, *first[1:]  # a hash or a name in it is damaged, not the file
    return first


def differ_in_one(one: str, other: str) -> bool:
    """Whether two hashes differ in one character: then a record is damaged, not the file."""
    return len(one) == len(other) and sum(a != b for a, b in zip(one, other)) == 1


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder. It replaces ``path`` if the block succeeds, else it is removed.

    The mode of an earlier file is kept. A symbolic link is replaced: it may lead into DVC's cache.
    The temporary name has the id of this process, as that of :func:`atomic_folder`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path), suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        is_file = path.is_file() and not path.is_symlink()
        temporary.chmod(stat.S_IMODE(path.stat().st_mode) if is_file else 0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder. It replaces the folder ``path`` if the block succeeds, else it is removed.

    Its name has the id of this process, so that one in use is known from what a killed process left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=_prefix(path)))
    temporary.chmod(0o755)
    try:
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _prefix(path: Path) -> str:
    return f".{path.name}.{os.getpid()}."


def remove(path: Path) -> None:
    """Remove a file or a folder, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        return shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink()


def atomic_copy(source: Path, target: Path) -> None:
    """Copy a file atomically."""
    with atomic_write(target) as temporary:
        shutil.copyfile(source, temporary)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` atomically, as UTF-8."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically. The same value gives the same bytes. NaN and infinity raise ``ValueError``."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in ``path``. Raises ``ValueError`` if it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None
