"""Read tar and zip archives safely: regular files only, no names that lead outside, a limited size.

Members are read into memory. The extraction of tarfile and zipfile is not used: its filters have had
vulnerabilities (CVE-2025-4517, -4330, -4435).
"""

import gzip
import io
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path, PurePosixPath

from pipeline.errors import BadInput

REMEDY = "download the archive again"
MAX_MEMBER_BYTES = 256_000_000


class _Bounded(io.RawIOBase):
    """A stream of at most ``budget`` bytes, including headers and skipped members.

    Raises ``BadInput`` beyond.
    """

    def __init__(self, stream: gzip.GzipFile, budget: int, where: Path) -> None:
        self._stream, self._left, self._where = stream, budget, where

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(self._left + 1 if size < 0 else min(size, self._left + 1))
        self._left -= len(data)
        if self._left < 0:
            what = "unpacks to more bytes than this data set can have"
            raise BadInput(what, where=str(self._where), remedy=REMEDY)
        return data


def read_tar(path: Path, wanted: Collection[str], budget: int) -> dict[str, bytes]:
    """Read the members ``wanted`` of a .tar.gz that unpacks to at most ``budget`` bytes.

    Raises ``BadInput`` for links, devices, names that lead outside, missing or duplicate members, and damage.
    """
    found: dict[str, bytes] = {}
    try:
        with (
            gzip.open(path) as stream,
            tarfile.open(fileobj=_Bounded(stream, budget, path), mode="r|") as archive,
        ):
            for member in archive:
                _check_name(member.name, path)
                if not (member.isreg() or member.isdir()):
                    what = f"contains '{member.name}', which is not a regular file"
                    raise BadInput(what, where=str(path), remedy=REMEDY)
                if member.name in found:
                    raise BadInput(f"contains '{member.name}' twice", where=str(path), remedy=REMEDY)
                if member.isreg() and member.name in wanted:
                    content = archive.extractfile(member)
                    found[member.name] = content.read() if content else b""
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError) as error:
        raise BadInput(f"is damaged ({error})", where=str(path), remedy=REMEDY) from None
    for name in wanted:
        if name not in found:
            raise BadInput(f"has no member '{name}'", where=str(path), remedy=REMEDY)
    return found


def list_zip(path: Path) -> tuple[list[str], list[str]]:
    """The names of a zip's regular files and of its folders, sorted. Their content is not read.

    Raises ``BadInput`` for links, encrypted or oversized members, names that lead outside, duplicates, and
    damage.
    """
    files: set[str] = set()
    folders: set[str] = set()
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError) as error:
        raise BadInput(f"is not a valid zip file ({error})", where=str(path), remedy=REMEDY) from None
    for member in members:
        name = member.filename
        _check_name(name, path)
        problem = remedy = ""
        if member.flag_bits & 0x1:
            problem, remedy = "which is encrypted", "create the zip without a password"
        elif stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            problem, remedy = "which is not a regular file", "zip the files themselves, not links"
        elif member.file_size > MAX_MEMBER_BYTES:
            problem = f"which has {member.file_size:,} bytes"
            remedy = f"keep files below {MAX_MEMBER_BYTES:,} bytes"
        elif name in files:
            problem, remedy = "which occurs twice", "create the zip again"
        if problem:
            raise BadInput(f"contains '{name}', {problem}", where=str(path), remedy=remedy)
        if member.is_dir():
            folders.add(name.rstrip("/"))
        else:
            files.add(name)
    return sorted(files), sorted(folders)


def read_member(archive: zipfile.ZipFile, name: str, lock: AbstractContextManager | None = None) -> bytes:
    """A member's bytes. Raises ``ValueError`` for damage and for more than ``MAX_MEMBER_BYTES``.

    Threads that read the same archive share a ``lock``. It is held only while a member is opened and closed,
    because zipfile does not lock these itself; members are unpacked in parallel.
    """
    lock = lock or nullcontext()
    try:
        with lock:
            stream = archive.open(name)
        try:
            data = stream.read(MAX_MEMBER_BYTES + 1)
        finally:
            with lock:
                stream.close()
    except (KeyError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise ValueError(f"cannot be unpacked ({error})") from None
    if len(data) > MAX_MEMBER_BYTES:
        raise ValueError(f"unpacks to more than {MAX_MEMBER_BYTES:,} bytes")
    return data


def _check_name(name: str, path: Path) -> None:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or ":" in parts[0] or "\0" in name:
        what = f"contains '{name}', a name that leads outside the folder"
        raise BadInput(what, where=str(path), remedy="do not trust this archive")
