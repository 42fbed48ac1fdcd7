"""Random access to the files of a zip, a tar or NumPy arrays.

Nothing is unpacked to a path that an archive names. The extraction of tarfile is not used: its filters have
had vulnerabilities (CVE-2025-4517, -4330, -4435). The pictures of arrays are read as if each were a file:
``train_images[12]``.
"""

import bz2
import gzip
import lzma
import os
import re
import shutil
import stat
import tarfile
import tempfile
import threading
import unicodedata
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from pipeline.data.findings import Findings

MAX_FILE_BYTES = 256_000_000
MAX_TAR_BYTES = 10**12  # unpacked
UNPACK: dict[bytes, Callable[[Path], Any]] = {  # by the first bytes of a file
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
}
ENCODINGS = ("utf-8", "cp932", "cp437")  # of names in a zip that does not say; cp932: Windows' Shift-JIS
JAPANESE = ("CJK", "HIRAGANA", "KATAKANA", "IDEOGRAPHIC")


@dataclass
class Listing(Findings):
    """The sorted names of the files and folders in a folder or archive: with ``/``, without ``./``."""

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


class Archive(Listing, ABC):
    """An archive that is open for reading."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of a file. Thread-safe. Raises ``ValueError`` for damage."""

    def _check(self, names: Iterable[str], special: list[str], large: list[str]) -> None:
        """Note the faults of all members."""
        twice = [name for name, count in Counter(self.files).items() if count > 1]
        self.fault(
            "contains names that lead outside",
            [name for name in names if name and leads_outside(name)],
            "do not trust it",
        )
        self.fault("contains links or devices", special, "pack the files themselves")
        self.fault(f"contains files of more than {MAX_FILE_BYTES:,} bytes", large, "leave them out")
        self.fault("contains files twice", twice, "create the archive again")
        self.files, self.folders = sorted(set(self.files)), sorted({*self.folders} - {*self.files, ""})


class Zip(Archive):
    """A zip file. Names that are not marked as UTF-8 are decoded with the first fitting encoding."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._lock = threading.Lock()  # zipfile does not lock the opening and closing of members itself
        self._zip = zipfile.ZipFile(path)
        odd = [
            one.filename
            for one in self._zip.infolist()
            if not (one.flag_bits & 0x800 or one.filename.isascii())
        ]
        if odd and (encoding := _encoding([name.encode("cp437") for name in odd])) != "cp437":
            self._zip = zipfile.ZipFile(path, metadata_encoding=encoding)
            self.warnings += [f"its file names are read as {encoding}"] if encoding != "utf-8" else []
        members = self._zip.infolist()
        names = [clean(one.filename) for one in members]
        self._members = dict(zip(names, members))
        regular = (0, stat.S_IFREG, stat.S_IFDIR)
        special = [one.filename for one in members if stat.S_IFMT(one.external_attr >> 16) not in regular]
        self.files = [name for name, one in zip(names, members) if not _is_folder(one)]
        self.folders = [name for name, one in zip(names, members) if _is_folder(one)]
        self._check(names, special, [one.filename for one in members if one.file_size > MAX_FILE_BYTES])
        encrypted = [one.filename for one in members if one.flag_bits & 1]
        self.fault("contains encrypted files", encrypted, "create the zip without a password")

    def read(self, name: str) -> bytes:
        """The bytes of a file."""
        try:
            with self._lock:
                stream = self._zip.open(self._members[name])
            try:
                # In parallel. zipfile unpacks as many bytes as are asked for, also if the zip says fewer.
                data = stream.read(min(self._members[name].file_size, MAX_FILE_BYTES) + 1)
            finally:
                with self._lock:
                    stream.close()
        except (KeyError, zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
            raise ValueError(f"cannot be unpacked ({error})") from None
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"unpacks to more than {MAX_FILE_BYTES:,} bytes")
        return data


class Tar(Archive):
    """A tar file. One that is compressed is unpacked into a temporary file, so that each file can be read."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file: Any = path.open("rb")
        if _unpacker(path):
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as this object)
            write_plain_tar(path, self._file)
            self._file.seek(0)
        self._places: dict[str, tuple[int, int]] = {}  # offset and size
        names, special, large = list[str](), list[str](), list[str]()
        with tarfile.open(fileobj=self._file, mode="r:") as archive:
            for member in archive:
                name = clean(member.name)
                names.append(name)
                if member.isdir():
                    self.folders.append(name)
                elif not member.isreg() or member.issparse():
                    special.append(member.name)
                else:
                    self.files.append(name)
                    self._places[name] = member.offset_data, member.size
                    large += [name] if member.size > MAX_FILE_BYTES else []
        self._check(names, special, large)

    def read(self, name: str) -> bytes:
        """The bytes of a file."""
        offset, size = self._places.get(name, (0, -1))
        data = os.pread(self._file.fileno(), max(0, size), offset)
        if len(data) != size:
            raise ValueError("cannot be unpacked (it is missing or cut off)")
        return data


def write_plain_tar(path: Path, target: BinaryIO) -> None:
    """Write the tar ``path`` without its compression. Raises ``ValueError`` if it is too large."""
    unpack = _unpacker(path)
    with unpack(path) if unpack else path.open("rb") as stream:
        shutil.copyfileobj(stream, cast(Any, _Limited(target)), 1 << 20)


class _Limited:
    """A file that refuses more than ``MAX_TAR_BYTES``."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.left = file, MAX_TAR_BYTES

    def write(self, data: bytes) -> None:
        self.left -= len(data)
        if self.left < 0:
            raise ValueError(f"unpacks to more than {MAX_TAR_BYTES:,} bytes")
        self.file.write(data)


def clean(name: str) -> str:
    """A name in an archive with ``/`` between its parts, without a leading ``./``."""
    name = name.replace("\\", "/")
    if name == "." or name.endswith("/") or "./" in name or "//" in name:
        start = "/" if name.startswith("/") else ""
        name = start + "/".join(part for part in name.split("/") if part not in ("", "."))
    return name


def leads_outside(name: str) -> bool:
    """Whether a name in an archive is not a plain relative path."""
    parts = name.split("/")
    return parts[0] in ("", ".") or ".." in parts or "\\" in name or ":" in parts[0] or "\0" in name


def _is_folder(member: zipfile.ZipInfo) -> bool:
    return member.filename.endswith(("/", "\\"))


def _unpacker(path: Path) -> Callable[[Path], Any] | None:
    with path.open("rb") as file:
        start = file.read(6)
    return next((unpack for magic, unpack in UNPACK.items() if start.startswith(magic)), None)


def _encoding(names: list[bytes]) -> str:
    """The first of ``ENCODINGS`` that fits all names."""
    for encoding in ENCODINGS:
        try:
            texts = [name.decode(encoding) for name in names]
        except UnicodeDecodeError:
            continue
        if encoding != "cp932" or all(map(_is_japanese, texts)):
            return encoding
    return ENCODINGS[-1]


def _is_japanese(text: str) -> bool:
    """Whether all other letters than ASCII's are Japanese, none of them alone within a Latin word."""
    odd = [letter for letter in text if not letter.isascii()]
    known = all(unicodedata.name(letter, "").startswith(JAPANESE) for letter in odd)
    return known and not re.search(r"[A-Za-z][^\x00-\x7f][A-Za-z]", text)
