"""Builders of folders and archives as people have them, for ``test_layouts.py``."""

import io
import json
import os
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from .conftest import encoded

Build = Callable[[Path], Path]
Names = dict[str, int]  # number of pictures in each folder


def members(folders: Names, suffix: str = ".png", kind: str = "PNG") -> dict[str, bytes]:
    """``folders[name]`` different pictures in each folder, by path."""
    numbers = [(folder, number) for folder, count in folders.items() for number in range(count)]
    return {
        f"{folder}/{number:02d}{suffix}".removeprefix("./"): encoded(seed, (9, 9), kind)
        for seed, (folder, number) in enumerate(numbers)
    }


def folder(names: Names, more: dict[str, bytes | str] | None = None, suffix: str = ".png") -> Build:
    """A folder of pictures and other files."""

    def build(root: Path) -> Path:
        for name, data in {**members(names, suffix), **(more or {})}.items():
            path = root / "own" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data.encode() if isinstance(data, str) else data)
        return root / "own"

    return build


def zipped(
    names: Names, rename: Callable[[str], str] = str, more: Iterable[str] = (), raw: str = ""
) -> Build:
    """A zip. ``raw``: the encoding of names that are not marked as UTF-8."""

    def build(root: Path) -> Path:
        contents = {rename(name): data for name, data in members(names).items()} | dict.fromkeys(more, b"x")
        with zipfile.ZipFile(root / "own.zip", "w") as archive:
            for name, data in contents.items():
                # A placeholder of the same length, as zipfile writes other names as UTF-8.
                hidden = "".join("~" for _ in name.encode(raw)) if raw else name
                info = zipfile.ZipInfo(f"{len(archive.infolist()):04d}{hidden[4:]}" if raw else name)
                info.filename = info.filename if raw else name  # with backslashes
                archive.writestr(info, data)
        if raw:
            packed = (root / "own.zip").read_bytes()
            for number, name in enumerate(contents):
                written = name.encode(raw)
                packed = packed.replace(f"{number:04d}".encode() + b"~" * (len(written) - 4), written)
            (root / "own.zip").write_bytes(packed)
        return root / "own.zip"

    return build


def tarred(names: Names, mode: str, suffix: str, prefix: str = "") -> Build:
    """A tar, which may be compressed."""

    def build(root: Path) -> Path:
        path = root / f"own{suffix}"
        with tarfile.open(path, f"w:{mode}") as archive:
            for name, data in members(names).items():
                info = tarfile.TarInfo(prefix + name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return path

    return build


def arrays(suffix: str = ".npz", **named: np.ndarray) -> Build:
    """An .npz, or a folder of .npy files."""

    def build(root: Path) -> Path:
        if suffix == ".npz":
            np.savez_compressed(root / "own.npz", **named)
            return root / "own.npz"
        (root / "own").mkdir()
        for name, array in named.items():
            np.save(root / "own" / f"{name}.npy", array)
        return root / "own"

    return build


def pixels(count: int, *shape: int, top: int = 256, kind: str = "uint8") -> np.ndarray:
    """Random pictures."""
    return np.random.default_rng(count).integers(0, top, (count, *shape)).astype(kind)


def labels(count: int, column: bool = False) -> np.ndarray:
    """Labels 0, 1, 2 in turn; as a column as in MedMNIST."""
    found = np.arange(count) % 3
    return found[:, None] if column else found


def table(separator: str, *rows: tuple[str, ...]) -> str:
    return "\n".join(separator.join(row) for row in rows) + "\n"


def flat(count: int) -> list[str]:
    """The names of ``count`` pictures in one folder, as ``members`` gives them."""
    return [f"{number:02d}.png" for number in range(count)]


def json_lines(count: int) -> str:
    rows = [{"file_name": name, "label": "ab"[number % 2]} for number, name in enumerate(flat(count))]
    return "".join(json.dumps(row) + "\n" for row in rows)


def decomposed(name: str) -> str:
    return unicodedata.normalize("NFD", name)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def picture(seed: int, size: int = 24) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def all_formats() -> dict[str, bytes]:
    """Each format under its own suffix, and under .jpg."""
    kinds = {"gif": "GIF", "bmp": "BMP", "tif": "TIFF", "ppm": "PPM", "webp": "WEBP", "jp2": "JPEG2000"}
    kinds |= {"pgm": "PPM", "avif": "AVIF", "jfif": "JPEG", "jpe": "JPEG", "JPG": "JPEG", "png": "PNG"}
    found = {}
    for number, (suffix, kind) in enumerate(kinds.items()):
        for folder in "ab":
            found[f"{folder}/{suffix}.{suffix}"] = saved(picture(number), kind)
            found[f"{folder}/named-{suffix}.jpg"] = saved(picture(100 + number), kind)
    return found


def twelve_bits(top: int) -> dict[str, bytes]:
    """16-bit pictures with values up to ``top``, as PNG and TIFF."""
    values = np.linspace(0, top, 81).reshape(9, 9).astype(np.uint16)
    image = Image.fromarray(values)
    kinds = {"png": "PNG", "tif": "TIFF"}
    names = [(folder, number) for folder in "ab" for number in range(6)]
    return {
        f"{folder}/{number}.{suffix}": saved(image, kind)
        for folder, number in names
        for suffix, kind in kinds.items()
    }


def chunk(name: bytes, content: bytes, crc: int | None = None) -> bytes:
    check = zlib.crc32(name + content) if crc is None else crc
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)


def with_chunk(added: bytes) -> bytes:
    """A PNG file with a chunk after its header."""
    data = saved(picture(1), "PNG")
    return data[:33] + added + data[33:]


def large_metadata() -> dict[str, bytes]:
    """PNG files with more than 1 MB of text and of colour profile, and bad checksums and EXIF data."""
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", "x" * 3_000_000, zip=True)
    exif = saved(picture(2), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xff" * 40)
    return {
        "a/text.png": saved(picture(3), "PNG", pnginfo=info),
        "a/profile.png": with_chunk(chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(3_000_000)))),
        "b/checksum.png": with_chunk(chunk(b"tIME", b"1234567", crc=1)),
        "b/text-checksum.png": with_chunk(chunk(b"tEXt", b"key\0value", crc=1)),
        "b/exif.png": with_chunk(chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff")),
        "b/exif.jpg": exif,
    }


def linked(target: str) -> Build:
    """Class folders with a link to ``target``, which is relative to the root: a file outside."""

    def build(root: Path) -> Path:
        path = folder({"a": 6, "b": 6})(root)
        outside = root / target
        outside.parent.mkdir(parents=True, exist_ok=True)
        outside.write_bytes(encoded(99, (9, 9)))
        os.symlink(outside, path / "a" / "link.png")
        return path

    return build
