"""A common interface to the images in ``data/raw``, whether they are arrays or image files."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.core.fields import DataSpec
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
    """Labelled images in the splits of their source, at least 'train'.

    ``channels`` and ``size`` are those after preprocessing.
    """

    class_names: tuple[str, ...]
    labels: dict[str, np.ndarray]
    channels: int
    size: int

    @property
    def spec(self) -> DataSpec:
        """The fields of the preprocessed examples."""
        return DataSpec.labelled_images(self.channels, self.size, len(self.class_names))

    @property
    def stable_names(self) -> list[str]:
        """Names of the images of 'train' that do not change when images are added; empty for arrays."""
        return []

    @abstractmethod
    def name(self, split: str, index: int) -> str:
        """The name of an image in messages and in the manifest."""

    @abstractmethod
    def decode(self, split: str, indices: np.ndarray, decode: Decode) -> Iterator[Decoded]:
        """The preprocessed images at ``indices``, in that order, in chunks."""


@dataclass(frozen=True)
class ArrayCollection(Collection):
    """Images that are published as arrays."""

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
    """Image files in a folder or zip."""

    path: Path
    names: dict[str, list[str]]

    @property
    def stable_names(self) -> list[str]:
        return self.names["train"]

    def name(self, split: str, index: int) -> str:
        return self.names[split][index]

    def decode(self, split: str, indices: np.ndarray, decode: Decode) -> Iterator[Decoded]:
        names = [self.names[split][index] for index in indices]
        return decode(Decoder(self.path, self.channels, self.size), names)


def open_raw(settings: DataSettings, raw: Path) -> tuple[Collection, dict[str, str]]:
    """The images in ``raw``, and the SHA-256 of its files.

    Raises ``BadInput`` for missing or changed files.
    """
    source = sources.find(settings.source)
    record = read_source(raw)
    if record["source"] != source.name:
        what = f"contains '{record['source']}', but params.yaml selects '{source.name}'"
        raise BadInput(what, where=str(raw), remedy=REMEDY)
    hashes = {name: entry["sha256"] for name, entry in record["files"].items()}
    for name, digest in hashes.items():
        if not (raw / name).is_file() or sha256(raw / name) != digest:
            what = "is missing or has changed since it was downloaded"
            raise BadInput(what, where=str(raw / name), remedy=REMEDY)
    channels = COLORS.get(settings.color, source.shape[0])
    if source.read is not None:
        class_names, arrays = source.read(raw)
        labels = {split: split_labels for split, (_, split_labels) in arrays.items()}
        images = {split: split_images for split, (split_images, _) in arrays.items()}
        size = settings.image_size or source.shape[1]
        return ArrayCollection(class_names, labels, channels, size, images), hashes
    if not settings.image_size:
        what, remedy = "is required for the source 'folder'", "set it to the side of the images, in pixels"
        raise BadInput(what, where="params.yaml: data.image_size", remedy=remedy)
    path = raw / f"{PICTURES}.zip"
    if path.exists():
        names, folders = list_zip(path)
    else:
        path = raw / PICTURES
        names, folders = [name.removeprefix(f"{PICTURES}/") for name in hashes], []
    layout = arrange(names, folders, where=str(path))
    labels, files = {}, {}
    for split, members in layout.splits.items():
        labels[split] = np.array([label for _, label in members], np.int64)
        files[split] = [name for name, _ in members]
    size = settings.image_size
    return PictureCollection(layout.class_names, labels, channels, size, path.resolve(), files), hashes


def read_source(raw: Path) -> dict[str, Any]:
    """The content of ``raw/source.json``. Raises ``BadInput`` if it is missing or invalid."""
    try:
        record = read_json(raw / "source.json")
        if isinstance(record["source"], str) and isinstance(record["files"], dict):
            return record
    except (OSError, ValueError, TypeError, KeyError):
        pass
    raise BadInput("is missing or invalid", where=str(raw / "source.json"), remedy=REMEDY)


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0), MODES[len(image)])
