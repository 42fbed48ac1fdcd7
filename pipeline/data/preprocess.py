"""The stage ``preprocess``: write the shards of each split, a manifest, a table and a contact sheet."""

from collections import Counter
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from pipeline.core.fields import PROCESSED
from pipeline.data.collection import Collection, open_raw
from pipeline.data.decoding import Decode, workers
from pipeline.data.settings import DataSettings
from pipeline.data.shards import ShardWriter
from pipeline.data.splits import divide
from pipeline.environment import Environment
from pipeline.errors import BadInput
from pipeline.files import atomic_folder, digest_of, write_json

NUM_SAMPLES = 10  # images of each class on the contact sheet
MAX_ROWS = 100  # classes on the contact sheet
MAX_EXAMPLES = 20  # duplicates listed in the manifest
MAX_HASHES = 20  # raw files listed in the manifest; for more it has only one digest


def preprocess(
    settings: DataSettings,
    environment: Environment,
    raw: Path = Path("data/raw"),
    target: Path = PROCESSED / "images",
) -> dict[str, Any]:
    """Create ``target`` from ``raw`` and return its manifest.

    The same raw files and settings give the same bytes. Images are decoded and written in chunks, so memory
    does not grow with their number.
    """
    collection, hashes = open_raw(settings, raw)
    parts = divide(collection.labels, collection.class_names, settings, collection.stable_names)
    total = sum(len(indices) for _, indices in parts.values())
    with atomic_folder(target) as folder:
        with workers(environment) as decode:
            writer = _SplitWriter(collection, decode, max_bad=int(settings.max_bad_fraction * total))
            splits = {split: writer.write(folder / split, *part) for split, part in parts.items()}
        manifest = {
            "source": settings.source,
            "class_names": list(collection.class_names),
            "fields": collection.spec.to_json(),
            "splits": splits,
            "raw": hashes if len(hashes) <= MAX_HASHES else {f"{len(hashes)} files": digest_of(hashes)},
            "settings": settings.model_dump(),
            "duplicates": writer.duplicates(),
            "quarantined": writer.quarantined,
        }
        write_json(folder / "manifest.json", manifest)
        table = pd.DataFrame(
            {"class": collection.class_names, **{split: entry["classes"] for split, entry in splits.items()}}
        )
        table.to_csv(folder / "classes.csv", index=False, lineterminator="\n")
        contact_sheet(writer.samples, collection.class_names).save(folder / "contact-sheet.png")
    return manifest


@dataclass
class _SplitWriter:
    """Writes the splits and collects what the manifest and contact sheet need."""

    collection: Collection
    decode: Decode
    max_bad: int
    quarantined: list[dict[str, str]] = field(default_factory=list)
    samples: dict[int, list[np.ndarray]] = field(default_factory=dict)  # of the training split, by label
    hashes: bytearray = field(default_factory=bytearray)  # 16 bytes for each image, in the order of writing
    # For each split: its name, the source's split, the indices there, and the labels.
    origins: list[tuple[str, str, np.ndarray, np.ndarray]] = field(default_factory=list)

    def write(self, folder: Path, source_split: str, indices: np.ndarray) -> dict[str, Any]:
        """Write the images at ``indices`` of ``source_split`` to ``folder``. Returns their manifest entry."""
        labels = self.collection.labels[source_split][indices]
        good = np.ones(len(indices), bool)
        writer = ShardWriter(folder, self.collection.spec)
        start = 0
        for images, reasons in self.collection.decode(source_split, indices, self.decode):
            chunk = slice(start, start + len(images))
            good[chunk] = [not reason for reason in reasons]
            for row, reason in enumerate(reasons):
                if reason:
                    self._quarantine(self.collection.name(source_split, int(indices[start + row])), reason)
            images, good_labels = images[good[chunk]], labels[chunk][good[chunk]]
            writer.write({"image": images, "label": good_labels})
            for image in images:
                self.hashes += blake2b(image.tobytes(), digest_size=16).digest()
            if folder.name == "train":
                self._add_samples(images, good_labels)
            start = chunk.stop
        counts = np.bincount(labels[good], minlength=len(self.collection.class_names))
        if not counts.all():
            name = self.collection.class_names[int(counts.argmin())]
            what = f"the split '{folder.name}' has no valid image of the class '{name}'"
            raise BadInput(what, where="data", remedy="repair or add images")
        self.origins.append((folder.name, source_split, indices[good], labels[good]))
        return {"count": int(good.sum()), "classes": counts.tolist(), "shards": writer.close()}

    def duplicates(self) -> dict[str, Any]:
        """Count exact duplicates: images whose preprocessed pixels equal those of an earlier image.

        The order is train, validation, test.

        ``within`` counts them for each split, ``across`` for each pair of splits, ``contradictory`` those
        with another label than the first such image. Duplicates are not removed.
        """
        splits = np.concatenate(
            [np.full(len(indices), number) for number, (_, _, indices, _) in enumerate(self.origins)]
        )
        labels = np.concatenate([labels for *_, labels in self.origins])
        starts = np.cumsum([0, *(len(indices) for _, _, indices, _ in self.origins)])
        _, groups, sizes = np.unique(
            np.frombuffer(self.hashes, "V16"), return_inverse=True, return_counts=True
        )
        first: dict[tuple[int, int], int] = {}  # (group, split) -> its first row
        within, across, contradictory = Counter[str](), Counter[str](), 0
        examples: list[list[str]] = []
        for row in np.flatnonzero(sizes[groups] > 1):
            group, split = int(groups[row]), int(splits[row])
            earlier = [first[group, other] for other in range(split + 1) if (group, other) in first]
            for other in {int(splits[index]) for index in earlier}:
                if other == split:
                    within[self.origins[split][0]] += 1
                else:
                    across[f"{self.origins[other][0]}-{self.origins[split][0]}"] += 1
            contradictory += bool(earlier) and bool(labels[earlier[0]] != labels[row])
            if earlier and len(examples) < MAX_EXAMPLES:
                examples.append([self._origin(index, starts, splits) for index in (earlier[0], int(row))])
            first.setdefault((group, split), int(row))
        return {
            "within": dict(within),
            "across": dict(across),
            "contradictory": contradictory,
            "examples": examples,
        }

    def _origin(self, row: int, starts: np.ndarray, splits: np.ndarray) -> str:
        split, source_split, indices, _ = self.origins[splits[row]]
        return f"{split}: {self.collection.name(source_split, int(indices[row - starts[splits[row]]]))}"

    def _quarantine(self, name: str, reason: str) -> None:
        if len(self.quarantined) >= self.max_bad:
            others = f" (after {len(self.quarantined)} others)" if self.quarantined else ""
            remedy = "repair or remove it, or allow a fraction of broken images with data.max_bad_fraction"
            raise BadInput(f"{reason}{others}", where=name, remedy=remedy)
        self.quarantined.append({"name": name, "reason": reason})

    def _add_samples(self, images: np.ndarray, labels: np.ndarray) -> None:
        for image, label in zip(images, labels.tolist()):
            if len(samples := self.samples.setdefault(label, [])) < NUM_SAMPLES:
                samples.append(image.copy())


def contact_sheet(samples: dict[int, list[np.ndarray]], class_names: tuple[str, ...]) -> Image.Image:
    """A row of images (C, H, W) for each class, with its name.

    Small images are enlarged by an integer factor.
    """
    size = samples[0][0].shape[-1]
    factor = -(-56 // size)
    tile, font = size * factor + 4, ImageFont.load_default(14)
    rows = class_names[:MAX_ROWS]
    margin = int(max(font.getlength(name) for name in rows)) + 16
    sheet = Image.new("RGB", (margin + NUM_SAMPLES * tile, len(rows) * tile + 4), "white")
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(rows):
        draw.text((8, row * tile + tile // 2), name, fill="black", font=font, anchor="lm")
        for column, image in enumerate(samples[row]):
            pixels = np.broadcast_to(image, (3, size, size)).transpose(1, 2, 0)
            enlarged = np.ascontiguousarray(pixels.repeat(factor, 0).repeat(factor, 1))
            sheet.paste(Image.fromarray(enlarged), (margin + column * tile, row * tile + 4))
    return sheet
