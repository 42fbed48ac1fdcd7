"""The stage ``preprocess``: write the shards of each split, a manifest, a table and a contact sheet."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from pipeline.core.fields import PROCESSED
from pipeline.data.collection import Collection, open_raw
from pipeline.data.decoding import Decode, workers
from pipeline.data.findings import FULL_LIST, MAX_EXAMPLES, write_names
from pipeline.data.fonts import font_of, readable
from pipeline.data.images import from_array
from pipeline.data.near_duplicates import Pair, Pictures, find_pairs, perceptual_hashes
from pipeline.data.settings import DataSettings
from pipeline.data.shards import ShardWriter
from pipeline.data.splits import divide
from pipeline.environment import Environment
from pipeline.errors import BadInput, listed
from pipeline.files import atomic_folder, digest_of, read_json, write_json

NUM_SAMPLES = 10  # images of each class on the contact sheet
MAX_ROWS = 100  # classes on the contact sheet
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
    names, groups = (found.get("train", ()) for found in (collection.files, collection.groups))
    parts = divide(collection.labels, collection.class_names, settings, names, groups)
    num_files = sum(len(indices) for _, indices in parts.values()) if collection.files else 0
    with atomic_folder(target) as folder:
        with workers(environment, num_files) as decode:
            writer, splits = _write(collection, settings, decode, parts, folder, environment.root / FULL_LIST)
        manifest: dict[str, Any] = {
            "source": settings.source,
            "class_names": list(collection.class_names),
            "fields": collection.spec.to_json(),
            "splits": splits,
            "raw": hashes if len(hashes) <= MAX_HASHES else {f"{len(hashes)} files": digest_of(hashes)},
            "settings": settings.model_dump(),
            "duplicates": writer.duplicates(),
            "quarantined": writer.quarantined,
        }
        if collection.files:
            manifest["bit_depth"] = collection.decoder.bits
            manifest["reading"] = read_json(raw / "source.json").get("reading", {})
            manifest["near_duplicates"] = writer.write_near_duplicates(folder)
        write_json(folder / "manifest.json", manifest)
        table = pd.DataFrame(
            {"class": collection.class_names, **{split: entry["classes"] for split, entry in splits.items()}}
        )
        table.to_csv(folder / "classes.csv", index=False, lineterminator="\n")
        contact_sheet(writer.samples, collection.class_names).save(folder / "contact-sheet.png")
    return manifest


def _write(
    collection: Collection,
    settings: DataSettings,
    decode: Decode,
    parts: dict[str, tuple[str, np.ndarray]],
    folder: Path,
    full_list: Path,
) -> tuple["_SplitWriter", dict[str, Any]]:
    """Write the splits; again while near-duplicates are in different ones and the settings forbid it."""
    max_bad = int(settings.max_bad_fraction * sum(len(indices) for _, indices in parts.values()))
    while True:
        writer = _SplitWriter(collection, decode, max_bad)
        splits = {split: writer.write(folder / split, *part) for split, part in parts.items()}
        writer.check(full_list)
        if collection.files and settings.near_duplicates != "off":
            writer.find_near_duplicates(folder, splits)
        if settings.near_duplicates != "keep_together" or not writer.move_near_duplicates(parts):
            return writer, splits
        for split in splits:
            shutil.rmtree(folder / split)


@dataclass
class _SplitWriter:
    """Writes the splits and collects what the manifest and contact sheet need."""

    collection: Collection
    decode: Decode
    max_bad: int
    quarantined: list[dict[str, str]] = field(default_factory=list)
    without_images: list[str] = field(default_factory=list)  # splits and their classes
    samples: dict[int, list[np.ndarray]] = field(default_factory=dict)  # of the training split, by label
    hashes: bytearray = field(default_factory=bytearray)  # 16 bytes for each image, in the order of writing
    looks: dict[str, list[np.ndarray]] = field(default_factory=dict)  # perceptual hashes by split
    pictures: dict[str, Pictures] = field(default_factory=dict)  # those that were written, by split
    near: dict[tuple[str, str], list[Pair]] = field(default_factory=dict)  # by an earlier and a later split
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
            for row in np.flatnonzero(~good[chunk]):
                name = self.collection.name(source_split, int(indices[start + row]))
                self.quarantined.append({"name": name, "reason": reasons[row]})
            images, good_labels = images[good[chunk]], labels[chunk][good[chunk]]
            writer.write({"image": images, "label": good_labels})
            for image in images:
                self.hashes += blake2b(image.tobytes(), digest_size=16).digest()
            if self.collection.files:
                self.looks.setdefault(folder.name, []).append(perceptual_hashes(images))
            if folder.name == "train":
                self._add_samples(images, good_labels)
            start = chunk.stop
        counts = np.bincount(labels[good], minlength=len(self.collection.class_names))
        for label in np.flatnonzero(counts == 0):
            self.without_images.append(f"'{self.collection.class_names[label]}' in '{folder.name}'")
        self.origins.append((folder.name, source_split, indices[good], labels[good]))
        return {"count": int(good.sum()), "classes": counts.tolist(), "shards": writer.close()}

    def check(self, full_list: Path) -> None:
        """Raise ``BadInput`` if too many images are broken, or a class has no valid image in a split.

        If there are more broken images than the message shows, all are listed in the file ``full_list``.
        """
        if len(self.quarantined) > self.max_bad:
            rows = sorted((entry["reason"], entry["name"]) for entry in self.quarantined)
            groups: dict[str, list[str]] = {}
            for full_reason, name in rows:
                reason, bracket, detail = full_reason.partition(" (")
                groups.setdefault(reason, []).append(name + bracket + detail)
            reasons = [f"\n  {reason}: {listed(sorted(names))}" for reason, names in groups.items()]
            if max(map(len, groups.values())) > MAX_EXAMPLES:
                reasons.append(f"\n  {write_names(full_list, rows)}")
            what = f"{len(self.quarantined):,} images are broken; {self.max_bad:,} may be:{''.join(reasons)}"
            remedy = "repair or remove them, or allow a fraction of broken images with data.max_bad_fraction"
            raise BadInput(what, where="data", remedy=remedy)
        if self.without_images:
            what = f"classes have no valid image: {listed(self.without_images)}"
            raise BadInput(what, where="data", remedy="repair or add images")

    def duplicates(self) -> dict[str, Any]:
        """Count exact duplicates: images whose preprocessed pixels equal those of an earlier image.

        The order is train, validation, test. ``within`` counts them for each split, ``across`` for each pair
        of splits, ``contradictory`` those with another label than the first such image. Duplicates are not
        removed.
        """
        names = [split for split, *_ in self.origins]
        ends = np.cumsum([len(indices) for _, _, indices, _ in self.origins])
        labels = np.concatenate([labels for *_, labels in self.origins])
        _, first, groups = np.unique(
            np.frombuffer(self.hashes, "V16"), return_index=True, return_inverse=True
        )
        first = first[groups]  # for each image the first one with its pixels
        later = np.flatnonzero(first < np.arange(len(first)))
        parts = dict(zip(names, np.split(first, ends[:-1])))
        within = {split: len(part) - len(np.unique(part)) for split, part in parts.items()}
        across = {f"{a}-{b}": int(np.isin(parts[b], parts[a]).sum()) for a, b in combinations(names, 2)}
        examples = [[self._origin(row, ends) for row in (first[row], row)] for row in later[:MAX_EXAMPLES]]
        return {
            "within": {split: count for split, count in within.items() if count},
            "across": {pair: count for pair, count in across.items() if count},
            "contradictory": int((labels[first[later]] != labels[later]).sum()),
            "examples": examples,
        }

    def find_near_duplicates(self, folder: Path, splits: dict[str, Any]) -> None:
        """Find the images of each split that look like one of an earlier split."""
        self.pictures = {
            split: Pictures(folder, entry["shards"], np.concatenate(self.looks[split]))
            for split, entry in splits.items()
        }
        pairs = combinations(self.pictures, 2)
        self.near = {(a, b): find_pairs(self.pictures[a], self.pictures[b]) for a, b in pairs}

    def move_near_duplicates(self, parts: dict[str, tuple[str, np.ndarray]]) -> int:
        """Move near-duplicates in ``parts`` to the earlier split, if both are drawn. Returns how many."""
        origins = {split: indices for split, _, indices, _ in self.origins}
        num_moved = 0
        for (earlier, later), pairs in self.near.items():
            if parts[earlier][0] == parts[later][0]:
                moved = np.intersect1d(origins[later][[pair.row for pair in pairs]], parts[later][1])
                parts[later] = parts[later][0], np.setdiff1d(parts[later][1], moved)
                parts[earlier] = parts[earlier][0], np.union1d(parts[earlier][1], moved)
                num_moved += len(moved)
        return num_moved

    def write_near_duplicates(self, folder: Path) -> dict[str, Any]:
        """Write a table and a sheet of the near-duplicates, if any. Returns their manifest entry."""
        indices = {split: (source_split, found) for split, source_split, found, _ in self.origins}

        def name(split: str, row: int) -> str:
            source_split, found = indices[split]
            return self.collection.name(source_split, int(found[row]))

        rows = [
            (later, name(later, pair.row), earlier, name(earlier, pair.earlier), pair.mirrored)
            for (earlier, later), pairs in self.near.items()
            for pair in pairs
        ]
        if rows:
            columns = ["split", "name", "earlier split", "earlier name", "mirrored"]
            table = pd.DataFrame(rows, columns=columns)
            table.to_csv(folder / "near-duplicates.csv", index=False, lineterminator="\n")
            names = [f"{row[1]} ({row[0]}), {row[3]} ({row[2]})" for row in rows[:MAX_EXAMPLES]]
            shown = [
                [self.pictures[earlier][pair.earlier], self.pictures[later][pair.row]]
                for (earlier, later), pairs in self.near.items()
                for pair in pairs[:MAX_EXAMPLES]
            ]
            sheet = contact_sheet(dict(enumerate(shown)), names, 2)
            sheet.save(folder / "near-duplicates.png")
        across = {"-".join(splits): len(pairs) for splits, pairs in self.near.items() if pairs}
        return {"across": across, "examples": [list(row[:4]) for row in rows[:MAX_EXAMPLES]]}

    def _origin(self, row: int, ends: np.ndarray) -> str:
        number = int(np.searchsorted(ends, row, side="right"))
        split, source_split, indices, _ = self.origins[number]
        index = int(indices[row - ends[number]])  # counted from the end of the split
        return f"{split}: {self.collection.name(source_split, index)}"

    def _add_samples(self, images: np.ndarray, labels: np.ndarray) -> None:
        for image, label in zip(images, labels.tolist()):
            if len(samples := self.samples.setdefault(label, [])) < NUM_SAMPLES:
                samples.append(image.copy())


def contact_sheet(
    samples: dict[int, list[np.ndarray]], names: Sequence[str], columns: int = NUM_SAMPLES
) -> Image.Image:
    """A row of images (C, H, W) for each class, with its name.

    Small images are enlarged by an integer factor.
    """
    size = samples[0][0].shape[-1]
    factor = -(-56 // size)
    rows, path = readable(names[:MAX_ROWS])
    tile, font = size * factor + 4, font_of(path, 14)
    margin = int(max(font.getlength(name) for name in rows)) + 16
    sheet = Image.new("RGB", (margin + columns * tile, len(rows) * tile + 4), "white")
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(rows):
        draw.text((8, row * tile + tile // 2), name, fill="black", font=font, anchor="lm")
        for column, image in enumerate(samples[row]):
            picture = from_array(image.repeat(factor, 1).repeat(factor, 2))
            sheet.paste(picture, (margin + column * tile, row * tile + 4))
    return sheet
