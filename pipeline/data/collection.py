"""A common interface to the images in ``data/raw``, whether they are arrays or image files."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.fields import DataSpec
from pipeline.data import sources
from pipeline.data.decoding import Decode, Decoded, Decoder, chunk_size
from pipeline.data.folders import PICTURES, arrange, list_files
from pipeline.data.images import from_array, resize_array
from pipeline.data.settings import DataSettings
from pipeline.errors import BadInput, listed
from pipeline.files import read_json, sha256

COLORS = {"grey": 1, "rgb": 3}
REMEDY = "run the stage 'download' again: dvc repro --force download"


@dataclass(frozen=True)
class Collection:
    """Labelled images in the splits of their source, at least 'train': arrays, or files in ``decoder.path``.

    ``decoder`` has the format of the images after preprocessing.
    """

    class_names: tuple[str, ...]
    labels: dict[str, np.ndarray]
    decoder: Decoder
    arrays: dict[str, np.ndarray] = field(default_factory=dict)  # uint8 (N, C, H, W); empty for files
    files: dict[str, list[str]] = field(default_factory=dict)  # names of files; empty for arrays

    @property
    def spec(self) -> DataSpec:
        """The fields of the preprocessed examples."""
        return DataSpec.labelled_images(self.decoder.channels, self.decoder.size, len(self.class_names))

    def name(self, split: str, index: int) -> str:
        """The name of an image in messages and in the manifest."""
        return self.files[split][index] if self.files else f"{split}[{index}]"

    def decode(self, split: str, indices: np.ndarray, decode: Decode) -> Iterator[Decoded]:
        """The preprocessed images at ``indices``, in that order, in chunks."""
        if self.files:
            yield from decode(self.decoder, [self.files[split][index] for index in indices])
            return
        channels, size, fit = self.decoder.channels, self.decoder.size, self.decoder.fit
        count = chunk_size(channels, size)
        for start in range(0, len(indices), count):
            images = self.arrays[split][indices[start : start + count]]
            if images.shape[1:] != (channels, size, size):
                images = np.stack([resize_array(from_array(image), channels, size, fit) for image in images])
            yield images, [""] * len(images)


def open_raw(settings: DataSettings, raw: Path) -> tuple[Collection, dict[str, str]]:
    """The images in ``raw``, and the SHA-256 of its files.

    Raises ``BadInput`` for missing or changed files.
    """
    source = sources.find(settings.source)
    hashes = _read_hashes(raw, source.name)
    channels, size = COLORS.get(settings.color, source.shape[0]), settings.image_size or source.shape[1]
    if source.read is not None:
        class_names, splits = source.read(raw)
        labels = {split: numbers for split, (_, numbers) in splits.items()}
        arrays = {split: images for split, (images, _) in splits.items()}
        return Collection(class_names, labels, Decoder(raw, channels, size, settings.fit), arrays), hashes
    if not size:
        what, remedy = "is required for the source 'folder'", "set it to the side of the images, in pixels"
        raise BadInput(what, where="params.yaml: data.image_size", remedy=remedy)
    path = raw / (PICTURES if (raw / PICTURES).is_dir() else f"{PICTURES}.zip")
    if path.is_dir():
        names, folders = [name.removeprefix(f"{PICTURES}/") for name in hashes], list[str]()
    else:
        names, folders = list_files(path)
    layout = arrange(names, folders, where=str(path))
    items = layout.splits.items()
    labels = {split: np.array([label for _, label in members], np.int64) for split, members in items}
    files = {split: [name for name, _ in members] for split, members in items}
    decoder = Decoder(path.resolve(), channels, size, settings.fit)
    return Collection(layout.class_names, labels, decoder, files=files), hashes


def _read_hashes(raw: Path, source: str) -> dict[str, str]:
    """The SHA-256 of each file, as ``source.json`` records and the files have it."""
    path = raw / "source.json"
    try:
        record: dict[str, Any] = read_json(path)
        found, hashes = record["source"], {name: file["sha256"] for name, file in record["files"].items()}
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        raise BadInput("is missing or invalid", where=str(path), remedy=REMEDY) from None
    if found != source:
        what = f"contains '{found}', but params.yaml selects '{source}'"
        raise BadInput(what, where=str(raw), remedy=REMEDY)
    changed = [
        name for name, digest in hashes.items() if not (raw / name).is_file() or sha256(raw / name) != digest
    ]
    if changed:
        what = f"files are missing or have changed since they were downloaded: {listed(changed)}"
        raise BadInput(what, where=str(raw), remedy=REMEDY)
    return hashes
