"""A strict reader of tar and zip archives: regular files, names that stay inside, a byte budget, into memory and never onto disk.

tarfile's and zipfile's own extraction is not used: its filters have been passed by several (CVE-2025-4517, -4330, -4435).
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

REMEDY = "get the archive again"
MAX_MEMBER_BYTES = 256_000_000


class _Bounded(io.RawIOBase):
    """A stream that refuses to give more than ``budget`` bytes, headers and skipped members included."""

    def __init__(self, stream: gzip.GzipFile, budget: int, where: Path) -> None:
        self._stream, self._left, self._where = stream, budget, where

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(self._left + 1 if size < 0 else min(size, self._left + 1))
        self._left -= len(data)
        if self._left < 0:
            raise BadInput(
                "unpacks to more bytes than its data can have", where=str(self._where), remedy=REMEDY
            )
        return data


def read_tar(path: Path, wanted: Collection[str], budget: int) -> dict[str, bytes]:
    """The members ``wanted`` of a .tar.gz that unpacks to at most ``budget`` bytes. Other regular files are skipped.

    Raises ``BadInput`` for links, devices, names that lead outside, members that are missing or there twice, and damage.
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
                    raise BadInput(
                        f"holds '{member.name}', which is no regular file", where=str(path), remedy=REMEDY
                    )
                if member.name in found:
                    raise BadInput(f"holds '{member.name}' twice", where=str(path), remedy=REMEDY)
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
    """The names of a zip's regular files and of its folders, sorted, without reading their content.

    Raises ``BadInput`` for links, encrypted or oversized members, names that lead outside or occur twice, and damage.
    """
    files: set[str] = set()
    folders: set[str] = set()
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError) as error:
        raise BadInput(f"is not a whole zip file ({error})", where=str(path), remedy=REMEDY) from None
    for member in members:
        name = member.filename
        _check_name(name, path)
        if member.flag_bits & 0x1:
            raise BadInput(
                f"holds '{name}', which is encrypted",
                where=str(path),
                remedy="make the zip without a password",
            )
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise BadInput(
                f"holds '{name}', which is no regular file",
                where=str(path),
                remedy="zip the files themselves, not links",
            )
        if member.file_size > MAX_MEMBER_BYTES:
            raise BadInput(
                f"holds '{name}' of {member.file_size:,} bytes",
                where=str(path),
                remedy=f"keep files below {MAX_MEMBER_BYTES:,}",
            )
        if name in files:
            raise BadInput(f"holds '{name}' twice", where=str(path), remedy="make the zip anew")
        if member.is_dir():
            folders.add(name.rstrip("/"))
        else:
            files.add(name)
    return sorted(files), sorted(folders)


def read_member(archive: zipfile.ZipFile, name: str, lock: AbstractContextManager = nullcontext()) -> bytes:  # noqa: B008 - reusable
    """A member's bytes, at most ``MAX_MEMBER_BYTES`` whatever its header says. Raises ``ValueError`` for damage.

    Threads that read one archive share a ``lock``. It is held while a member is opened and closed, which is all that zipfile does
    not guard itself, and not while it is unpacked.
    """
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
        raise BadInput(
            f"holds '{name}', a name that leads outside", where=str(path), remedy="do not trust this archive"
        )
