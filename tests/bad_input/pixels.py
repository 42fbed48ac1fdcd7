"""D5: arrays of pictures and labels."""

import io
import zipfile
from pathlib import Path

import numpy as np

from tests.bad_input.case import Build, Case, with_data, write
from tests.data.layouts import arrays, labels, pixels

BOTH = ("download", "preprocess")
GOOD, OF_THREE = pixels(30, 8, 8), labels(30)


def _with(value: float, kind: str = "float32") -> np.ndarray:
    """Pictures with this value in one pixel."""
    found = (GOOD / 255).astype(kind)
    found[3, 4, 5] = value
    return found


def _use(build: Build, name: str = "own.npz") -> Build:
    def written(root: Path) -> None:
        build(root)
        write(root, data=with_data(source="folder", folder=name))

    return written


def _of(images: np.ndarray, of: np.ndarray = OF_THREE) -> Build:
    return _use(arrays(images=images, labels=of))


def _header(text: bytes) -> Build:
    """An .npy file with this header in an .npz."""

    def build(root: Path) -> None:
        head = b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text
        with zipfile.ZipFile(root / "own.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("images.npy", head)

    return _use(build)


def _cut(root: Path) -> None:
    stream = io.BytesIO()
    np.savez(stream, images=GOOD, labels=OF_THREE)
    (root / "own.npz").write_bytes(stream.getvalue()[:-900])


def _plain(data: bytes) -> Build:
    return _use(lambda root: (root / "own.npy").write_bytes(data) and None, "own.npy")


CASES = [
    Case("not a number", _of(_with(np.nan)), "own.npz|not finite: 'images'"),
    Case("infinity", _of(_with(np.inf)), "own.npz|not finite: 'images'"),
    Case("minus infinity", _of(_with(-np.inf, "float64")), "own.npz|not finite: 'images'"),
    Case("a negative value", _of(_with(-0.5)), "own.npz|has negative values"),
    Case("negative integers", _of(GOOD.astype("int16") - 9), "own.npz|has negative values"),
    Case("complex numbers", _of(GOOD.astype("complex64")), "own.npz|holds an array"),
    Case("text", _of(np.full((30, 8, 8), "x")), "own.npz|holds an array"),
    Case("objects", _of(np.full((30, 8, 8), None)), "own.npz|is not a valid .npz file"),
    Case("no picture", _of(GOOD[:0], OF_THREE[:0]), "own.npz|holds an array of the shape (0,"),
    Case("pictures without pixels", _of(GOOD[:, :0]), "own.npz|holds an array of the shape (30, 0, 8)"),
    Case("five dimensions", _of(GOOD[:, None, None]), "own.npz|holds an array of the shape (30, 1, 1, 8, 8)"),
    Case("fractions as labels", _of(GOOD, OF_THREE / 2), "own.npz|holds an array of the shape (30,)"),
    Case(
        "labels of two kinds",
        _of(GOOD, np.stack([OF_THREE] * 2, 1)),
        "own.npz|holds an array of the shape (30, 2)",
    ),
    Case("too few labels", _of(GOOD, OF_THREE[1:]), "own.npz|has 29 labels for 30 pictures"),
    Case("a label of one picture", _of(GOOD, np.arange(30) // 29), "5 are needed|'1' has 1", BOTH),
    Case("labels without pictures", _use(arrays(labels=OF_THREE)), "own.npz|labels without pictures"),
    Case(
        "a shape that is too large",
        _header(b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999, 9, 9), }\n"),
        "own.npz|is not a valid .npz",
    ),
    Case(
        "a header that is none",
        _header(b"__import__('os').system('touch hacked')\n"),
        "own.npz|is not a valid .npz",
    ),
    Case("an archive that is cut off", _use(_cut), "own.npz|is not a valid .npz file"),
    Case("a pickle", _plain(b"\x80\x04N."), "own.npy|is not a valid .npy file"),
    Case("an empty file", _plain(b"\n"), "own.npy|is not a valid .npy file"),
    Case(
        "a header that is cut off", _plain(b"\x93NUMPY\x01\0v\0{'descr"), "own.npy|is not a valid .npy file"
    ),
    Case("all black", _of(np.zeros_like(GOOD)), "", BOTH),
    Case("constant", _of(np.full_like(GOOD, 7)), "", BOTH),
]
