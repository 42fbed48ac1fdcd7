"""D6: archives that lead outside, hold links or devices, are damaged, or are larger than they say."""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from tests.bad_input.case import Build, Case, with_data, write
from tests.data.conftest import encoded
from tests.data.layouts import members

PICTURES = members({"a": 6, "b": 6})
BOTH = ("download", "preprocess")


def tar(path: Path, *contents: tarfile.TarInfo | tuple[str, bytes]) -> Path:
    """A .tar.gz. Members are (name, content) or a TarInfo."""
    with tarfile.open(path, "w:gz") as archive:
        for member in contents:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return path


def special(kind: bytes, name: str = "a", target: str = "/etc/passwd") -> tarfile.TarInfo:
    """A link, device or FIFO."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_with(path: Path, *contents: tuple[str, bytes], mode: int = 0) -> Path:
    """A zip of (name, content), each with this Unix mode."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return path


# Members of a tar, and a regular expression for the reason why ``read_tar`` refuses it.
TARS = {
    "a name above": ([("../a", b"1")], "leads outside"),
    "a name above, in a folder": ([("x/../../a", b"1")], "leads outside"),
    "an absolute name": ([("/a", b"1")], "leads outside"),
    "a drive of Windows": ([("c:/a", b"1")], "leads outside"),
    "a name above, with a backslash": ([("..\\a", b"1")], "leads outside"),
    "a symbolic link": ([special(tarfile.SYMTYPE)], "not a regular file"),
    "a hard link": ([special(tarfile.LNKTYPE)], "not a regular file"),
    "a device": ([special(tarfile.CHRTYPE)], "not a regular file"),
    "a FIFO": ([special(tarfile.FIFOTYPE)], "not a regular file"),
    "a file twice": ([("a", b"1"), ("a", b"2")], "'a' twice"),
}
OUTSIDE, LINKS = "contains names that lead outside|do not trust it", "contains links or devices"
WORDS = {"leads outside": OUTSIDE, "not a regular file": LINKS, "'a' twice": "contains files twice: 'a'"}


def _use(name: str, make: Callable[[Path], object]) -> Build:
    def build(root: Path) -> None:
        make(root / name)
        write(root, data=with_data(source="folder", folder=name))

    return build


def _tar(*contents: tarfile.TarInfo | tuple[str, bytes]) -> Build:
    return _use("own.tar.gz", lambda path: tar(path, *contents, *PICTURES.items()) and None)


def _zip(*contents: tuple[str, bytes], mode: int = 0) -> Build:
    return _use("own.zip", lambda path: zip_with(path, *contents, mode=mode) and None)


def _changed(change: Callable[[bytes], bytes]) -> Build:
    """A zip of pictures with a change of its bytes."""
    return _use(
        "own.zip", lambda path: path.write_bytes(change(zip_with(path, *PICTURES.items()).read_bytes()))
    )


def _lie(size: int, said: int) -> Build:
    """A zip with a file of ``size`` bytes, of which the zip says that it has another number."""

    def make(path: Path) -> None:
        data = zip_with(path, *PICTURES.items(), ("a/bomb.png", bytes(size))).read_bytes()
        path.write_bytes(data.replace(size.to_bytes(4, "little"), said.to_bytes(4, "little")))

    return _use("own.zip", make)


def _encrypted(path: Path) -> None:
    data = bytearray(zip_with(path, ("a/0.png", encoded(1))).read_bytes())
    for magic, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(magic) + place] |= 1
    path.write_bytes(data)


def _write(data: bytes) -> Build:
    return lambda path: path.write_bytes(data) and None


CASES = [
    *(
        Case(f"a tar with {name}", _tar(*made), f"own.tar.gz|{WORDS[reason]}")
        for name, (made, reason) in TARS.items()
    ),
    Case("a zip with a name above", _zip(("../a.png", b"")), f"own.zip|{OUTSIDE}"),
    Case("a zip with an absolute name", _zip(("/a.png", b"")), f"own.zip|{OUTSIDE}"),
    Case("a zip with a name of 300 parts", _zip(("../" * 300 + "a.png", b"")), f"own.zip|{OUTSIDE}"),
    Case("a zip with a link", _zip(("a.png", b"/etc/passwd"), mode=0o120777), f"own.zip|{LINKS}: 'a.png'"),
    Case("a zip with a device", _zip(("a.png", b""), mode=0o020666), f"own.zip|{LINKS}: 'a.png'"),
    Case(
        "a zip with a file twice",
        _zip(("a.png", b"1"), ("a.png", b"2")),
        "own.zip|contains files twice: 'a.png'",
    ),
    Case("a zip with a password", _use("own.zip", _encrypted), "own.zip|encrypted files: 'a/0.png'"),
    Case("a zip with a file of 300 MB", _lie(16_000_000, 300_000_000), "more than 256,000,000 bytes"),
    Case("a zip that lies about its sizes", _lie(16_000_000, 100), "a/bomb.png|max_bad_fraction", BOTH),
    Case(
        "a zip with a flipped bit",
        _changed(lambda data: data[:300] + b"\xff\xff" + data[302:]),
        "a/|max_bad_fraction",
        BOTH,
    ),
    Case("a zip that is cut off", _changed(lambda data: data[:900]), "own.zip|is not a valid zip file"),
    Case("a zip without its first byte", _changed(lambda data: data[1:]), "a/|max_bad_fraction", BOTH),
    Case("a zip of nothing", _zip(), "own.zip|contains no images"),
    Case(
        "a gzip file called .zip",
        _use("own.zip", _write(gzip.compress(b"x"))),
        "own.zip|is not a valid zip file",
    ),
    Case("an empty file called .zip", _use("own.zip", _write(b"\n")), "own.zip|is not a valid zip file"),
    Case(
        "a tar that is cut off",
        _use(
            "own.tar.gz",
            lambda path: path.write_bytes(tar(path, *PICTURES.items()).read_bytes()[:900]) and None,
        ),
        "own.tar.gz|is not a valid",
    ),
]
