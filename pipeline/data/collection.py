"""What ``data/raw`` holds, verified, before it is divided: arrays or pictures, seen alike."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data import sources
from pipeline.data.archives import list_zip
from pipeline.data.decoding import Decode, Decoded, Decoder, chunk_size
from pipeline.data.folders import PICTURES, arrange
from pipeline.data.images import MODES, fit
from pipeline.data.settings import DataSettings
from pipeline.errors import BadInput
from pipeline.files import read_json, sha256

COLORS = {"grey": 1, "rgb": 3}
REMEDY = "run the stage 'download' again: dvc repro --force download"


@dataclass(frozen=True)
class Collection(ABC):
    """Labelled images in the source's own splits, of which 'train' is always there. Channels and size are those after preparation."""

    class_names: tuple[str, ...]
    labels: dict[str, np.ndarray]
    channels: int
    size: int

    @property
    def lasting_names(self) -> list[str]:
        """By which the images of 'train' are known whatever joins them; none where their place is all they have."""
        return []

    @abstractmethod
    def name(self, split: str, index: int) -> str:
        """What a person finds an image by."""

    @abstractmethod
    def decode(self, split: str, indices: np.ndarray, decode: Decode) -> Iterator[Decoded]:
        """The prepared images at ``indices``, in that order, in chunks."""


@dataclass(frozen=True)
class ArrayCollection(Collection):
    """Images that were published as arrays."""

    images: dict[str, np.ndarray]

    def name(self, split: str, index: int) -> str:
        return f"{split}[{index}]"

    def decode(self, split: str, indices: np.ndarray, decode: Decode) -> Iterator[Decoded]:
        count = chunk_size(self.channels, self.size)
        for start in range(0, len(indices), count):
            images = self.images[split][indices[start : start + count]]
            if images.shape[1:] != (self.channels, self.size, self.size):
                images = np.stack([fit(_picture(image), self.channels, self.size) for image in images])
            yield images, [""] * len(images)


@dataclass(frozen=True)
class PictureCollection(Collection):
    """Encoded pictures in a folder or zip."""

    place: Path
    names: dict[str, list[str]]

    @property
    def lasting_names(self) -> list[str]:
        return self.names["train"]

    def name(self, split: str, index: int) -> str:
        return self.names[split][index]

    def decode(self, split: str, indices: np.ndarray, decode: Decode) -> Iterator[Decoded]:
        return decode(
            Decoder(self.place, self.channels, self.size), [self.names[split][index] for index in indices]
        )


def open_raw(settings: DataSettings, raw: Path) -> tuple[Collection, dict[str, str]]:
    """The collection in ``raw``, and the SHA-256 of its files. Raises ``BadInput`` if ``raw`` is not what was downloaded."""
    source = sources.find(settings.source)
    record = read_source(raw)
    if record["source"] != source.name:
        what = f"holds '{record['source']}', params.yaml asks for '{source.name}'"
        raise BadInput(what, where=str(raw), remedy=REMEDY)
    hashes = {name: entry["sha256"] for name, entry in record["files"].items()}
    for name, digest in hashes.items():
        if not (raw / name).is_file() or sha256(raw / name) != digest:
            raise BadInput(
                "is missing or altered since it was downloaded", where=str(raw / name), remedy=REMEDY
            )
    channels = COLORS.get(settings.color, source.shape[0])
    if source.read is not None:
        class_names, arrays = source.read(raw)
        labels = {split: own for split, (_, own) in arrays.items()}
        images = {split: own for split, (own, _) in arrays.items()}
        return ArrayCollection(
            class_names, labels, channels, settings.image_size or source.shape[1], images
        ), hashes
    if not settings.image_size:
        raise BadInput(
            "is needed for the source 'folder'",
            where="params.yaml: data.image_size",
            remedy="give the side of the images, in pixels",
        )
    zipped = raw / f"{PICTURES}.zip"
    place = zipped if zipped.exists() else raw / PICTURES
    names, folders = (
        list_zip(zipped) if zipped.exists() else ([name.removeprefix(f"{PICTURES}/") for name in hashes], [])
    )
    layout = arrange(names, folders, where=str(place))
    labels = {
        split: np.array([label for _, label in members], np.int64) for split, members in layout.splits.items()
    }
    members = {split: [name for name, _ in own] for split, own in layout.splits.items()}
    return PictureCollection(
        layout.class_names, labels, channels, settings.image_size, place.resolve(), members
    ), hashes


def read_source(raw: Path) -> dict[str, Any]:
    """What ``raw/source.json`` says. Raises ``BadInput`` where there is none."""
    try:
        record = read_json(raw / "source.json")
        if isinstance(record["source"], str) and isinstance(record["files"], dict):
            return record
    except (OSError, ValueError, TypeError, KeyError):
        pass
    raise BadInput("is missing or no record of a download", where=str(raw / "source.json"), remedy=REMEDY)


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0), MODES[len(image)])
