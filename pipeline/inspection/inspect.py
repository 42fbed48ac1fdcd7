"""Examine a folder or archive of pictures before anything is trained."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.collection import bit_depth
from pipeline.data.reading import Entry, Layout, read_layout
from pipeline.data.settings import DataSettings
from pipeline.data.splits import divide
from pipeline.errors import BadInput
from pipeline.inspection import suggestions
from pipeline.inspection.measurements import Picture, measure_all
from pipeline.inspection.near_duplicates import find_groups
from pipeline.inspection.suspects import suspects
from pipeline.params import PARAMS, read_file, read_section

EXAMPLES = 20  # names that are listed of each kind
FENCE = 3.0  # interquartile ranges beyond the quartiles: an outlier
REPAIR = "repair or remove them, or allow a fraction of broken images with data.max_bad_fraction"


@dataclass(frozen=True)
class Inspection:
    """The ``report`` is plain JSON. ``pictures`` are those that can be read.

    ``bits``: those of the values in images with 16 bits for each pixel.
    """

    report: dict[str, Any]
    pictures: list[Picture]
    class_names: tuple[str, ...]
    bits: int

    @property
    def trainable(self) -> bool:
        """Whether nothing stops a training."""
        return not self.report["faults"]


def inspect(path: Path, root: Path | None, show: Callable[[int, int], None]) -> Inspection:
    """Examine ``path``, a folder or archive. ``root`` is the project, if there is one.

    ``show`` is called with the number of pictures that were measured and of all. Raises ``BadInput`` if
    ``path`` is missing or cannot be opened.
    """
    if not path.exists():
        raise BadInput("no such folder or archive", where=str(path), remedy="check the path")
    settings, is_projects = _settings(path, root)
    layout = read_layout(path, settings)
    total = len(layout.entries)
    bits = bit_depth(settings, (path, [entry.path for entry in layout.entries]))
    measured = list(measure_all(path, layout.entries, bits, lambda done: show(done, total)))
    faults = [_fault(what, names, layout.remedies.get(what, "")) for what, names in layout.faults.items()]
    faults += _broken(measured, int(settings.max_bad_fraction * total))
    entries = layout.entries
    try:
        splits = _split(layout, settings) if entries and not layout.faults else {}
    except BadInput as error:
        splits, faults = {}, [*faults, _fault(error.what, [], error.remedy)]
    pictures = [each for each in measured if not each.reason]
    report: dict[str, Any] = {
        "path": str(path),
        "pictures": total,
        "drawn_splits": bool(splits) and len({entry.split for entry in entries}) < 3,
        "splits": dict(Counter(splits.values())),
        "classes": _classes(layout, splits),
        "formats": _counts(each.format for each in pictures),
        "modes": _counts(each.mode for each in pictures),
        "sizes": _sizes(pictures),
        "skipped": _skipped(layout),
        "faults": faults,
        "warnings": list(layout.warnings),
    }
    report["imbalance"] = _imbalance(report["classes"])
    report["near_duplicates"] = find_groups(pictures, splits)
    report["outliers"] = _outliers(pictures)
    held_out = {name for name, split in splits.items() if split != "train"} if is_projects else None
    report["suspected_labels"] = suspects(path, pictures, layout.class_names, root, held_out)
    params = read_file(root / PARAMS) if root and (root / PARAMS).is_file() else {}
    report["params"] = suggestions.suggest(suggestions.folder_of(path, root), pictures, report, params)
    report["trainable"] = not faults
    text = json.dumps(report, ensure_ascii=False)
    printable = text.encode(errors="replace").decode()  # names of files need not be text
    return Inspection(json.loads(printable), pictures, layout.class_names, bits)


def _settings(path: Path, root: Path | None) -> tuple[DataSettings, bool]:
    """The project's settings if they name ``path``, else the defaults; whether they are the project's."""
    if root and (root / PARAMS).is_file():
        settings = read_section("data", DataSettings, root / PARAMS)
        if settings.source == "folder" and (root / settings.folder).resolve() == path.resolve():
            return settings, True
    return DataSettings(source="folder", folder=str(path)), False


def _split(layout: Layout, settings: DataSettings) -> dict[str, str]:
    """The split of each picture, by name, as preprocessing divides them. Raises ``BadInput``."""
    by_split: dict[str, list[Entry]] = {}
    for entry in layout.entries:
        by_split.setdefault(entry.split or "train", []).append(entry)
    numbers = {name: number for number, name in enumerate(layout.class_names)}
    labels = {
        split: np.array([numbers[entry.label] for entry in entries], np.int64)
        for split, entries in by_split.items()
    }
    names = [entry.path for entry in by_split["train"]]
    groups = [entry.group for entry in by_split["train"]] if settings.group else []
    parts = divide(labels, layout.class_names, settings, names, groups)
    return {
        by_split[source][index].path: split
        for split, (source, indices) in parts.items()
        for index in indices.tolist()
    }


def _skipped(layout: Layout) -> dict[str, Any]:
    """The names that are skipped, without the tables that were read."""
    others = {why: sorted({*names} - {*layout.sidecars}) for why, names in layout.skipped.items()}
    return {why: _listed(names) for why, names in others.items() if names}


def _classes(layout: Layout, splits: dict[str, str]) -> list[dict[str, Any]]:
    counts = Counter((entry.label, splits.get(entry.path, entry.split)) for entry in layout.entries)
    totals = Counter(entry.label for entry in layout.entries)
    names = [split for split in ("train", "validation", "test") if any(key[1] == split for key in counts)]
    return [
        {"class": label, "pictures": totals[label], **{split: counts[label, split] for split in names}}
        for label in layout.class_names
    ]


def _imbalance(classes: list[dict[str, Any]]) -> dict[str, Any]:
    """The largest and the smallest class, and how many times as many pictures the largest has."""
    ordered = sorted(classes, key=lambda row: row["pictures"])
    if not ordered:
        return {"ratio": 1.0}
    smallest, largest = ordered[0], ordered[-1]
    ratio = round(largest["pictures"] / max(1, smallest["pictures"]), 2)
    return {"smallest": smallest["class"], "largest": largest["class"], "ratio": ratio}


def _sizes(pictures: Sequence[Picture]) -> dict[str, Any]:
    known = sorted((each.width * each.height, each.width, each.height) for each in pictures if each.width)
    if not known:
        return {}
    at = {"smallest": 0, "median": len(known) // 2, "largest": -1}
    square = sum(width == height for _, width, height in known)
    sizes: dict[str, Any] = {name: list(known[index][1:]) for name, index in at.items()}
    return sizes | {"different": len(set(known)), "not_square": round(1 - square / len(known), 4)}


def _outliers(pictures: Sequence[Picture]) -> dict[str, list[dict[str, Any]]]:
    """Pictures far outside the quartiles (Tukey 1977), the farthest first."""
    values = {
        "dark": [-each.brightness for each in pictures],
        "bright": [each.brightness for each in pictures],
        "blurred": [-np.log(max(each.sharpness, 1e-3)) for each in pictures],
        "small": [-np.log(max(each.width * each.height, 1)) for each in pictures],
        "large": [np.log(max(each.width * each.height, 1)) for each in pictures],
    }
    found = {}
    for kind, numbers in values.items():
        low, high = np.percentile(numbers, [25, 75]) if numbers else (0.0, 0.0)
        limit = high + max(FENCE * (high - low), 0.05)
        rows = [row for row in np.argsort(numbers)[::-1].tolist() if numbers[row] > limit]
        if rows:
            found[kind] = [_described(pictures[row]) for row in rows[:EXAMPLES]]
    return found


def _described(picture: Picture) -> dict[str, Any]:
    return {
        "path": picture.entry.path,
        "class": picture.entry.label,
        "size": [picture.width, picture.height],
        "brightness": round(picture.brightness, 3),
        "sharpness": round(picture.sharpness, 1),
    }


def _broken(measured: Sequence[Picture], allowed: int) -> list[dict[str, Any]]:
    """Faults for pictures that cannot be read, by reason, if there are more than ``allowed``."""
    reasons: dict[str, list[str]] = {}
    for picture in measured:
        if picture.reason:
            reasons.setdefault(picture.reason.partition(" (")[0], []).append(picture.entry.path)
    if sum(map(len, reasons.values())) <= allowed:
        return []
    return [_fault(f"broken pictures ({reason})", names, REPAIR) for reason, names in reasons.items()]


def _fault(what: str, names: Sequence[str], remedy: str) -> dict[str, Any]:
    return {"what": what, "count": len(names), "examples": list(names), "remedy": remedy}  # all names


def _listed(names: Sequence[str]) -> dict[str, Any]:
    return {"count": len(names), "examples": list(names[:EXAMPLES])}


def _counts(values: Any) -> dict[str, int]:
    return dict(Counter(values).most_common())
