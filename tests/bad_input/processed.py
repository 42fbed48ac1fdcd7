"""Raw and processed data that are not what the stages wrote, met by preprocessing and by a training."""

import functools
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.bad_input.case import Build, Case, run, write
from tests.project import PARAMS, TRAINING

RAW, DATA = "data/raw", "data/processed/images"
MANIFEST, RECORD = f"{DATA}/manifest.json", f"{RAW}/source.json"
IMAGES = f"{DATA}/train/image-00000.npy"
DEEP = "[" * 5_000 + "]" * 5_000


@functools.cache
def _good() -> tempfile.TemporaryDirectory[str]:
    """A project with raw and processed digits."""
    place = tempfile.TemporaryDirectory()
    write(Path(place.name))
    for stage in ("download", "preprocess"):
        assert run(Path(place.name), stage) == (0, "")
    return place


def _changed(change: Callable[[Path], object], **sections: object) -> Build:
    def build(root: Path) -> None:
        shutil.rmtree(root / "data")
        shutil.copytree(Path(_good().name, "data"), root / "data")
        change(root)
        write(root, **sections)

    return build


def _file(name: str, data: bytes | str) -> Build:
    return _changed(
        lambda root: (root / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    )


def _entry(name: str, change: Callable[[dict], object]) -> Build:
    """The JSON file ``name`` with a change of its value."""

    def changed(root: Path) -> None:
        value = json.loads((root / name).read_text())
        change(value)
        (root / name).write_text(json.dumps(value))

    return _changed(changed)


def _removed(name: str) -> Build:
    return _changed(lambda root: (root / name).unlink())


def _flipped(name: str, at: int) -> Build:
    def change(root: Path) -> None:
        data = bytearray((root / name).read_bytes())
        data[at] ^= 1
        (root / name).write_bytes(data)

    return _changed(change)


def _objects() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([None, print], object), allow_pickle=True)
    return stream.getvalue()


BIG_BATCH = {"cnn": {**PARAMS["cnn"], "training": {**TRAINING, "batch_size": 5_000}}}
FOUND = "what preprocessing wrote|dvc repro --force preprocess"
NO_MANIFEST = "manifest.json|is not a manifest of processed data|dvc repro"
DOWNLOAD = "run the stage 'download' again"
TRAIN = {
    "no manifest": (_removed(MANIFEST), "manifest.json: is missing|dvc repro preprocess"),
    "an empty manifest": (_file(MANIFEST, ""), NO_MANIFEST),
    "a manifest that is a list": (_file(MANIFEST, "[]"), NO_MANIFEST),
    "a manifest that is cut off": (_file(MANIFEST, '{"format": 2, "spl'), NO_MANIFEST),
    "a manifest that is not UTF-8": (_file(MANIFEST, b"\xff\xfe{}"), NO_MANIFEST),
    "a manifest 5,000 deep": (_file(MANIFEST, DEEP), NO_MANIFEST),
    "a manifest without splits": (_entry(MANIFEST, lambda value: value.pop("splits")), NO_MANIFEST),
    "a manifest of another form": (
        _entry(MANIFEST, lambda value: value.update(splits={"train": 3})),
        NO_MANIFEST,
    ),
    "a shard that is missing": (_removed(IMAGES), f"image-00000.npy: is missing or differs from {FOUND}"),
    "a shard that is cut off": (
        _file(IMAGES, b"\x93NUMPY"),
        f"image-00000.npy: is missing or differs from {FOUND}",
    ),
    "a flipped bit in a shard": (
        _flipped(IMAGES, -9),
        f"image-00000.npy: is missing or differs from {FOUND}",
    ),
    "a pickle as a shard": (
        _file(IMAGES, _objects()),
        f"image-00000.npy: is missing or differs from {FOUND}",
    ),
    "a batch larger than the data": (
        _changed(lambda root: None, **BIG_BATCH),
        "cnn.training.batch_size: is larger than the training split (1,295 examples)|set it to at most 1295",
    ),
}
PREPROCESS = {
    "no record of a download": (_removed(RECORD), f"source.json: is missing or invalid|{DOWNLOAD}"),
    "a record that is a list": (_file(RECORD, "[]"), f"source.json: is missing or invalid|{DOWNLOAD}"),
    "a record 5,000 deep": (_file(RECORD, DEEP), f"source.json: is missing or invalid|{DOWNLOAD}"),
    "a record of another source": (
        _entry(RECORD, lambda value: value.update(source="mnist")),
        f"mnist|{DOWNLOAD}",
    ),
    "a record of a file above": (
        _entry(RECORD, lambda value: value["files"].update({"../../params.yaml": {"sha256": "0"}})),
        DOWNLOAD,
    ),
    "a raw file that is missing": (_removed(f"{RAW}/digits.csv.gz"), f"digits.csv.gz|{DOWNLOAD}"),
    "a flipped bit in a raw file": (_flipped(f"{RAW}/digits.csv.gz", 99), f"digits.csv.gz|{DOWNLOAD}"),
    "a raw file too many": (_file(f"{RAW}/more.gz", "x"), f"more.gz|{DOWNLOAD}"),
}
CASES = [
    *(Case(name, build, words, ("train cnn",)) for name, (build, words) in TRAIN.items()),
    *(Case(name, build, words, ("preprocess",)) for name, (build, words) in PREPROCESS.items()),
]
