"""A common interface to the images in ``data/raw``, whether they are arrays or image files."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.fields import DataSpec
from pipeline.data import sources
from pipeline.data.decoding import Decode, Decoded, Decoder, chunk_size
from pipeline.data.folders import ARCHIVES, PICTURES, list_files, read_file
from pipeline.data.images import WIDE_MODES, from_array, open_image, resize_array
from pipeline.data.reading import read_layout
from pipeline.data.settings import COLORS, DataSettings
from pipeline.errors import BadInput, listed
from pipeline.files import read_json, sha256

SAMPLE = 100  # images in which the bit depth is looked for
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
    groups: dict[str, list[str]] = field(default_factory=dict)  # of the files; empty without groups

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
    return _open_pictures(settings, raw, channels), hashes


def _open_pictures(settings: DataSettings, raw: Path, channels: int) -> Collection:
    """The pictures of the user's folder or archive, of which ``raw`` has a copy."""
    copies = [raw / f"{PICTURES}{suffix}" for suffix in ("", *ARCHIVES)]
    path = next((copy for copy in copies if copy.exists()), copies[0]).absolute()
    # A table of labels that was next to the source is now in ``raw``.
    table = Path(settings.labels).name if (raw / Path(settings.labels).name).is_file() else settings.labels
    layout = read_layout(path, settings.model_copy(update={"labels": table}))
    layout.refuse(where=str(path))
    splits = layout.splits().items()
    files = {split: [entry.path for entry in entries] for split, entries in splits}
    groups = {split: [entry.group for entry in entries] for split, entries in splits}
    numbers = {name: number for number, name in enumerate(layout.class_names)}
    labels = {
        split: np.array([numbers[entry.label] for entry in entries], np.int64) for split, entries in splits
    }
    names = [name for some in files.values() for name in some]
    bits = bit_depth(settings, (path, names))
    decoder = Decoder(path, channels, settings.image_size, settings.fit, bits)
    return Collection(
        layout.class_names, labels, decoder, files=files, groups=groups if settings.group else {}
    )


def bit_depth(settings: DataSettings, *places: tuple[Path, Iterable[str]]) -> int:
    """The bits of the values in images with 16 bits for each pixel: 8, 12 or 16.

    The setting, or as many as are needed in the first of ``places``, folders or archives and names in them,
    that has such images among ``SAMPLE`` of its images.
    """
    if settings.bit_depth != "auto":
        return settings.bit_depth
    for path, names in places:
        ordered, largest = sorted(names), -1
        for name in ordered[:: max(1, len(ordered) // SAMPLE)]:
            with suppress(Exception), open_image(read_file(path, name)) as image:
                if image.mode in WIDE_MODES:
                    largest = max(largest, int(np.asarray(image).max()))
        if largest >= 0:
            return next((bits for bits in (8, 12) if largest < 2**bits), 16)
    return 16


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
    changed += [name for name in list_files(raw).files if name not in hashes and name != path.name]
    if changed:
        what = f"files are missing or have changed since they were downloaded: {listed(changed)}"
        raise BadInput(what, where=str(raw), remedy=REMEDY)
    return hashes
