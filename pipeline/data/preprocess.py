"""The stage ``preprocess``: raw files -> hashed shards of train, validation and test, a manifest, a table and a contact sheet."""

from collections import Counter
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from pipeline.data.collection import Collection, open_raw
from pipeline.data.decoding import Decode, workers
from pipeline.data.settings import DataSettings
from pipeline.data.shards import ShardWriter
from pipeline.data.splits import divide
from pipeline.environment import Environment
from pipeline.errors import BadInput
from pipeline.files import atomic_folder, digest_of, write_json

SHOWN = 10  # images of a class on the contact sheet
MAX_ROWS = 100  # classes on the contact sheet
MAX_NAMED = 20  # duplicates named in the manifest
MAX_HASHES = 20  # raw files named in the manifest; of more it holds one digest


def preprocess(
    settings: DataSettings,
    environment: Environment,
    raw: Path = Path("data/raw"),
    target: Path = Path("data/processed"),
) -> dict[str, Any]:
    """Make ``target`` from ``raw`` and return its manifest. The same raw files and settings give the same bytes.

    Images are decoded in the order of the files and written as they come, so memory does not grow with their number.
    """
    collection, hashes = open_raw(settings, raw)
    parts = divide(collection.labels, collection.class_names, settings, collection.lasting_names)
    total = sum(len(indices) for _, indices in parts.values())
    with atomic_folder(target) as folder:
        with workers(environment) as decode:
            made = _Made(collection, decode, max_bad=int(settings.max_bad_fraction * total))
            splits = {split: made.write(folder / split, *part) for split, part in parts.items()}
        manifest = {
            "source": settings.source,
            "class_names": list(collection.class_names),
            "channels": collection.channels,
            "size": collection.size,
            "splits": splits,
            "raw": hashes if len(hashes) <= MAX_HASHES else {f"{len(hashes)} files": digest_of(hashes)},
            "settings": settings.model_dump(),
            "duplicates": made.duplicates(),
            "quarantined": made.quarantined,
        }
        write_json(folder / "manifest.json", manifest)
        table = pd.DataFrame(
            {"class": collection.class_names, **{split: entry["classes"] for split, entry in splits.items()}}
        )
        table.to_csv(folder / "classes.csv", index=False, lineterminator="\n")
        contact_sheet(made.samples, collection.class_names).save(folder / "contact-sheet.png")
    return manifest


@dataclass
class _Made:
    """What has been written so far, and what was noticed on the way."""

    collection: Collection
    decode: Decode
    max_bad: int
    quarantined: list[dict[str, str]] = field(default_factory=list)
    samples: dict[int, list[np.ndarray]] = field(default_factory=dict)  # of the training split, by label
    hashes: bytearray = field(default_factory=bytearray)  # 16 bytes for each image, in the order of writing
    origins: list[tuple[str, str, np.ndarray, np.ndarray]] = field(
        default_factory=list
    )  # split, source's split, indices, labels

    def write(self, folder: Path, own_split: str, indices: np.ndarray) -> dict[str, Any]:
        """Decode and write the images at ``indices`` of the source's ``own_split``; returns the split's part of the manifest."""
        labels = self.collection.labels[own_split][indices]
        good = np.ones(len(indices), bool)
        writer = ShardWriter(folder, (self.collection.channels, self.collection.size, self.collection.size))
        at = 0
        for images, reasons in self.collection.decode(own_split, indices, self.decode):
            here = slice(at, at + len(images))
            good[here] = [not reason for reason in reasons]
            for row, reason in enumerate(reasons):
                if reason:
                    self._quarantine(self.collection.name(own_split, int(indices[at + row])), reason)
            images, kept = images[good[here]], labels[here][good[here]]
            writer.write(images, kept)
            for image in images:
                self.hashes += blake2b(image.tobytes(), digest_size=16).digest()
            if folder.name == "train":
                self._sample(images, kept)
            at = here.stop
        counts = np.bincount(labels[good], minlength=len(self.collection.class_names))
        if not counts.all():
            name = self.collection.class_names[int(counts.argmin())]
            raise BadInput(
                f"the split '{folder.name}' has no image of the class '{name}' left",
                where="data",
                remedy="mend or add images",
            )
        self.origins.append((folder.name, own_split, indices[good], labels[good]))
        return {"count": int(good.sum()), "classes": counts.tolist(), "shards": writer.close()}

    def duplicates(self) -> dict[str, Any]:
        """Images equal to an earlier one, pixel for pixel after preparation, in the order train, validation, test.

        ``within`` counts them for each split, ``across`` for each pair of splits, ``contradictory`` those of another class than
        the first of their kind. None is removed.
        """
        splits = np.concatenate(
            [np.full(len(indices), number) for number, (_, _, indices, _) in enumerate(self.origins)]
        )
        labels = np.concatenate([labels for *_, labels in self.origins])
        starts = np.cumsum([0, *(len(indices) for _, _, indices, _ in self.origins)])
        _, groups, sizes = np.unique(
            np.frombuffer(self.hashes, "V16"), return_inverse=True, return_counts=True
        )
        first: dict[tuple[int, int], int] = {}  # (group, split) -> the first row there
        within, across, contradictory = Counter[str](), Counter[str](), 0
        named: list[list[str]] = []
        for row in np.flatnonzero(sizes[groups] > 1):
            group, split = int(groups[row]), int(splits[row])
            earlier = [first[group, other] for other in range(split + 1) if (group, other) in first]
            for other in {int(splits[twin]) for twin in earlier}:
                if other == split:
                    within[self.origins[split][0]] += 1
                else:
                    across[f"{self.origins[other][0]}-{self.origins[split][0]}"] += 1
            contradictory += bool(earlier) and bool(labels[earlier[0]] != labels[row])
            if earlier and len(named) < MAX_NAMED:
                named.append([self._origin(index, starts, splits) for index in (earlier[0], int(row))])
            first.setdefault((group, split), int(row))
        return {
            "within": dict(within),
            "across": dict(across),
            "contradictory": contradictory,
            "examples": named,
        }

    def _origin(self, row: int, starts: np.ndarray, splits: np.ndarray) -> str:
        split, own_split, indices, _ = self.origins[splits[row]]
        return f"{split}: {self.collection.name(own_split, int(indices[row - starts[splits[row]]]))}"

    def _quarantine(self, name: str, reason: str) -> None:
        if len(self.quarantined) >= self.max_bad:
            before = f" (after {len(self.quarantined)} others)" if self.quarantined else ""
            remedy = "mend or remove it, or allow a share of broken images with data.max_bad_fraction"
            raise BadInput(f"{reason}{before}", where=name, remedy=remedy)
        self.quarantined.append({"name": name, "reason": reason})

    def _sample(self, images: np.ndarray, labels: np.ndarray) -> None:
        for image, label in zip(images, labels.tolist()):
            if len(shown := self.samples.setdefault(label, [])) < SHOWN:
                shown.append(image.copy())


def contact_sheet(samples: dict[int, list[np.ndarray]], class_names: tuple[str, ...]) -> Image.Image:
    """A row of images (C, H, W) for each class, with its name, enlarged by a whole factor so that a person can see them."""
    size = samples[0][0].shape[-1]
    factor = -(-56 // size)
    tile, font = size * factor + 4, ImageFont.load_default(14)
    rows = class_names[:MAX_ROWS]
    margin = int(max(font.getlength(name) for name in rows)) + 16
    sheet = Image.new("RGB", (margin + SHOWN * tile, len(rows) * tile + 4), "white")
    pen = ImageDraw.Draw(sheet)
    for row, name in enumerate(rows):
        pen.text((8, row * tile + tile // 2), name, fill="black", font=font, anchor="lm")
        for column, image in enumerate(samples[row]):
            pixels = (
                np.broadcast_to(image, (3, size, size)).transpose(1, 2, 0).repeat(factor, 0).repeat(factor, 1)
            )
            sheet.paste(
                Image.fromarray(np.ascontiguousarray(pixels)), (margin + column * tile, row * tile + 4)
            )
    return sheet
