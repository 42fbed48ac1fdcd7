"""D2: files of MNIST, CIFAR-10 and digits, damaged or of another form, as a publisher might send them."""

import gzip
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pipeline.files import sha256, write_json
from tests.bad_input.archives import tar
from tests.bad_input.case import Build, Case, with_data, write

pack = partial(gzip.compress, mtime=0)  # pytest puts the bytes into test names, which must not vary


def idx(shape: tuple[int, ...], data: bytes, magic: bytes | None = None) -> bytes:
    """An IDX file of bytes."""
    start = bytes([0, 0, 8, len(shape)]) if magic is None else magic
    return start + struct.pack(f">{len(shape)}I", *shape) + data


GOOD = idx((2, 3, 2), bytes(range(12)))
# A gzipped IDX file of three dimensions, and a regular expression for the reason.
BROKEN = {
    "an empty file": (b"", "starts with nothing"),
    "nothing in gzip": (pack(b""), "starts with nothing"),
    "not gzip": (b"plainly not gzip", "is damaged"),
    "a web page": (b"<!doctype html><title>404</title>", "is damaged"),
    "gzip that is cut off": (pack(GOOD)[:-9], "is damaged"),
    "a wrong checksum": (pack(GOOD)[:-8] + b"\0\0\0\0" + pack(GOOD)[-4:], "is damaged"),
    "a wrong length of gzip": (pack(GOOD)[:-4] + b"\0\0\0\0", "is damaged"),
    "a header of gzip": (pack(GOOD)[:12], "is damaged"),
    "two bytes": (pack(GOOD[:2]), "starts with 00 00"),
    "a header that is cut off": (pack(GOOD[:9]), "ends within its header"),
    "32-bit floats": (pack(idx((2, 3, 2), bytes(12), magic=b"\0\0\x0d\x03")), "starts with 00 00 0d 03"),
    "labels in the place of images": (pack(idx((12,), bytes(12))), "starts with 00 00 08 01"),
    "another byte order": (pack(idx((2, 3, 2), bytes(12), magic=b"\x03\x08\0\0")), "starts with 03 08"),
    "a byte too few": (pack(idx((2, 3, 2), bytes(11))), r"11 bytes of values, but the shape \[2, 3, 2\]"),
    "a byte too many": (pack(idx((2, 3, 2), bytes(13))), "13 bytes of values, but the shape"),
    "no images": (pack(idx((0, 3, 2), b"")), "0 bytes of values, but the shape"),
    "a product beyond 64 bits": (pack(idx((2**32 - 1,) * 3, bytes(12))), "12 bytes of values, but the shape"),
    "a product of 2^32": (
        pack(idx((2**16, 2**16, 1), bytes(12))),
        r"the shape \[65536, 65536, 1\] in its header",
    ),
    "100 million images": (pack(idx((100_000_000, 1, 1), bytes(12))), "12 bytes of values, but the shape"),
    "rubbish at the end": (pack(GOOD) + b"rubbish", "is damaged"),
    "another gzip at the end": (pack(GOOD) + pack(b"x"), "13 bytes of values, but the shape"),
}
IMAGES, LABELS = pack(idx((90, 28, 28), bytes(90 * 784))), pack(idx((90,), bytes(list(range(10)) * 9)))
MNIST = {
    f"{part}-{kind}-ubyte.gz": data
    for part in ("train", "t10k")
    for kind, data in (("images-idx3", IMAGES), ("labels-idx1", LABELS))
}
FIRST, SECOND, TEST = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
# Changed files of MNIST, and parts of the message.
PAIRS = {
    "a label too many": ({SECOND: pack(idx((91,), bytes(91)))}, f"{SECOND}|91 labels for the 90 images"),
    "narrow images": ({FIRST: pack(idx((90, 28, 27), bytes(90 * 756)))}, f"{FIRST}|not (1, 28, 28)"),
    "the label 10": (
        {SECOND: pack(idx((90,), b"\x0a" * 90))},
        f"{SECOND}|the label 10; there are 10 classes",
    ),
    "the label 255": ({TEST: pack(idx((90,), b"\xff" * 90))}, f"{TEST}|the label 255; there are 10 classes"),
    "images as labels": ({SECOND: IMAGES}, f"{SECOND}|starts with 00 00 08 03"),
    "images that unpack to 256 MB": (
        {FIRST: pack(bytes(2**20)) * 256},
        f"{FIRST}|more than the 200,000,000 bytes",
    ),
    "no test labels": ({TEST: pack(idx((0,), b""))}, f"{TEST}|0 bytes of values"),
}
ROW = bytes(3072)
NAMES = b"\n".join(f"class {number}".replace(" ", "").encode() for number in range(10))
CIFAR = "cifar-10-batches-bin/"
RECORDS = b"".join(bytes([label]) + ROW for label in range(10))
BATCHES = {f"{CIFAR}data_batch_{number}.bin": RECORDS for number in range(1, 6)}
BATCHES |= {f"{CIFAR}test_batch.bin": RECORDS, f"{CIFAR}batches.meta.txt": NAMES}
CIFARS = {
    "a record that is cut off": (
        {f"{CIFAR}test_batch.bin": RECORDS[:-1]},
        "not a multiple of a record's 3,073",
    ),
    "no records": ({f"{CIFAR}data_batch_2.bin": b""}, "not a multiple of a record's 3,073"),
    "a label above the classes": (
        {f"{CIFAR}data_batch_5.bin": b"\x0a" + ROW},
        "the label 10; there are 10 classes",
    ),
    "a class name twice": ({f"{CIFAR}batches.meta.txt": b"cat\ncat"}, "no distinct class names"),
    "no class names": ({f"{CIFAR}batches.meta.txt": b""}, "no distinct class names"),
    "a name above": ({"../x": b""}, "leads outside"),
    "a pickle in the place of a batch": (
        {f"{CIFAR}data_batch_1.bin": b"\x80\x04N."},
        "not a multiple of a record",
    ),
}
DIGITS = {
    "no digits": "",
    "three columns": "1,2,3",
    "a pixel above 16": ",".join(["17"] * 64 + ["1"]),
    "the label ten": ",".join(["1"] * 64 + ["10"]),
    "words": ",".join(["x"] * 65),
    "a negative pixel": ",".join(["-1"] * 64 + ["1"]),
}


def _raw(source: str, files: Callable[[Path], dict[str, bytes]]) -> Build:
    """data/raw as the stage download writes it."""

    def build(root: Path) -> None:
        raw = root / "data/raw"
        raw.mkdir(parents=True)
        for name, data in files(root).items():
            (raw / name).write_bytes(data)
        entries = {path.name: {"sha256": sha256(path)} for path in raw.iterdir()}
        write_json(raw / "source.json", {"source": source, "files": entries})
        write(root, data=with_data(source=source))

    return build


def _mnist(changed: dict[str, bytes]) -> Build:
    return _raw("mnist", lambda root: {**MNIST, **changed})


def _cifar(changed: dict[str, bytes]) -> Build:
    def files(root: Path) -> dict[str, bytes]:
        path = tar(root / "x.tar.gz", *{**BATCHES, **changed}.items())
        data = path.read_bytes()
        path.unlink()
        return {"cifar-10-binary.tar.gz": data}

    return _raw("cifar10", files)


def _digits(text: str) -> Build:
    return _raw("digits", lambda root: {"digits.csv.gz": pack(text.encode())})


ONLY = ("preprocess",)
CASES = [
    *(
        Case(name, _mnist({FIRST: data}), f"{FIRST}|run the stage 'download'", ONLY)
        for name, (data, _) in BROKEN.items()
    ),
    *(Case(name, _mnist(changed), words, ONLY) for name, (changed, words) in PAIRS.items()),
    *(
        Case(name, _cifar(changed), f"cifar-10-binary.tar.gz|{words}", ONLY)
        for name, (changed, words) in CIFARS.items()
    ),
    *(Case(name, _digits(text), "digits.csv.gz", ONLY) for name, text in DIGITS.items()),
    Case("a good MNIST", _mnist({}), "", ONLY),
    Case("a good CIFAR-10", _cifar({}), "", ONLY),
]
