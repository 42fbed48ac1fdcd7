"""What a folder or archive of pictures holds: the pictures, their splits, classes and groups, and its faults.

Nothing is decoded here. ``darkroom inspect`` and the stages ``download`` and ``preprocess`` read the same
``Layout``.
"""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pipeline.data.arrays import Arrays
from pipeline.data.class_folders import ONE_CLASS, REMEDY, Entry, find_classes
from pipeline.data.findings import Findings
from pipeline.data.folders import SYSTEM, SYSTEM_NAMES, list_files, read_file
from pipeline.data.images import REFUSED_SUFFIXES, SUFFIXES
from pipeline.data.labels import ANNOTATIONS, TABLES, LabelTable, read_annotations
from pipeline.data.settings import DataSettings
from pipeline.data.split_names import are_splits, split_of
from pipeline.errors import BadInput, listed

COLUMN = "column:"  # in data.group


@dataclass
class Layout(Findings):
    """Pictures sorted by path, class names in alphabetical order, and a report of how they were found.

    ``labelled``: also those of classes that are left out. ``arrays``: whether the pictures are in arrays and
    not in files. ``sidecars`` are other files in the source that were read; ``table`` is a table of labels
    next to it.
    """

    entries: list[Entry] = field(default_factory=list)
    labelled: list[Entry] = field(default_factory=list)
    class_names: tuple[str, ...] = ()
    arrays: bool = False
    sidecars: list[str] = field(default_factory=list)
    table: Path | None = None

    def splits(self) -> dict[str, list[Entry]]:
        """The pictures by split; without splits, all are in 'train'."""
        found: dict[str, list[Entry]] = {}
        for entry in self.entries:
            found.setdefault(entry.split or "train", []).append(entry)
        return found


def read_layout(path: Path, settings: DataSettings) -> Layout:
    """The layout of the folder, zip, tar or .npz ``path``. All faults are in it; it raises none of them.

    Raises ``BadInput`` only if ``path`` cannot be listed, or the table ``settings.labels`` is missing.
    """
    listing = list_files(path)
    layout = Layout(listing.skipped, listing.faults, listing.remedies, listing.warnings)
    arrays = listing if isinstance(listing, Arrays) else None
    files = [] if arrays else listing.files
    if not arrays and path.is_dir() and not any(map(_is_picture, files)):
        layout.sidecars = [name for name in files if name.endswith(".npy") and "/" not in name]
        arrays = Arrays(path) if layout.sidecars else None
    if layout.faults:
        return layout
    if arrays:
        layout.arrays, layout.faults, layout.remedies = True, arrays.faults, arrays.remedies
        return _finish(layout, [Entry(*member) for member in arrays.members], settings)
    pictures = _pictures(files, layout)
    if not pictures:
        return layout
    table = _find_table(path, files, pictures, layout, settings.labels)
    if table:
        column = settings.group.removeprefix(COLUMN) if settings.group.startswith(COLUMN) else ""
        rows = [Entry(*row) for row in table.rows(pictures, column, layout)]
        return _finish(layout, _with_splits_of_folders(rows), settings)
    known: dict[str, str] = {}
    for name in files:
        if name.lower().endswith(ANNOTATIONS):
            layout.sidecars.append(name)
            known |= read_annotations(name, read_file(path, name), pictures)
    return _finish(
        layout, find_classes(pictures, listing.folders, known, layout, bool(settings.group)), settings
    )


def arrange(files: Iterable[str], folders: Iterable[str], settings: DataSettings | None = None) -> Layout:
    """The layout of class folders with these files, by their names alone."""
    layout = Layout()
    pictures = _pictures(files, layout)
    folders = [name for name in folders if not _is_system(name)]
    rows = find_classes(pictures, folders, {}, layout) if pictures else []
    return _finish(layout, rows, settings or DataSettings())


def _is_system(name: str) -> bool:
    return name.startswith(".") or "/." in name or not SYSTEM_NAMES.isdisjoint(name.lower().split("/"))


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _is_picture(name: str) -> bool:
    return _suffix(name) in SUFFIXES


def _pictures(files: Iterable[str], layout: Layout) -> list[str]:
    """The pictures among the files. Says what the others are."""
    system = {name for name in files if _is_system(name)}
    layout.skip(SYSTEM, system)
    others = defaultdict[str, list[str]](list)
    pictures = list[str]()
    for name in files:
        if name not in system:
            suffix = _suffix(name)
            (pictures if suffix in SUFFIXES else others[suffix]).append(name)
    refused = [name for suffix in others.keys() & REFUSED_SUFFIXES for name in others.pop(suffix)]
    layout.fault("contains files in formats that are not supported", refused, "convert them to PNG or JPEG")
    for suffix, names in others.items():
        layout.skip(f"not pictures: {suffix or 'without a suffix'}", names)
    garbled = [name for name in pictures if name.encode(errors="replace").decode() != name]
    layout.fault("contains names that are not UTF-8", garbled, "rename the files")
    if not pictures:
        kinds = Counter({suffix or "without a suffix": len(names) for suffix, names in others.items()})
        found = [f"{count:,} {kind}" for kind, count in kinds.most_common()] or ["nothing"]
        layout.fault("contains no images (PNG, JPEG, BMP, WebP, GIF, TIFF, ...)", found, REMEDY)
    return pictures


def _find_table(
    path: Path, files: Sequence[str], pictures: Sequence[str], layout: Layout, name: str
) -> LabelTable | None:
    """The table ``name`` in or next to the source. Without a name, the table of pictures without classes."""
    parents = {picture.rpartition("/")[0] for picture in pictures}
    if not name and len(parents) > 1 and not all(split_of(PurePosixPath(one).name) for one in parents):
        return None
    above = {str(folder) for one in parents for folder in (PurePosixPath(one), *PurePosixPath(one).parents)}
    names = (
        [name]
        if name
        else [one for one in files if _suffix(one) in TABLES and str(PurePosixPath(one).parent) in above]
    )
    tables = list[LabelTable]()
    for each in names:
        try:
            if each in files:
                tables.append(LabelTable(each, read_file(path, each)))
                continue
            places = [place for place in (path.parent / each, Path(each)) if place.is_file()]
            if not places:
                remedy = f"correct the setting: a path in or next to {path}"
                raise BadInput(f"there is no table '{each}'", where="params.yaml: data.labels", remedy=remedy)
            layout.table = places[0]
            tables.append(LabelTable(places[0].name, places[0].read_bytes()))
        except ValueError as error:
            layout.fault(f"has a table that cannot be read ({error})", [each] if name else [], "correct it")
    if name:
        layout.sidecars += [] if layout.table else names
        return tables[0] if tables else None
    tables = [table for table in tables if table.usable]
    if len(tables) > 1:
        several = [table.name for table in tables]
        layout.fault(
            "has several tables that may have its classes", several, "set data.labels to one of them"
        )
    if len(tables) != 1:
        return None
    layout.sidecars.append(tables[0].name)
    columns = listed(column for column in tables[0].columns if column)
    layout.warnings.append(f"the classes are read from {tables[0].name}, columns {columns}")
    return tables[0]


def _with_splits_of_folders(rows: list[Entry]) -> list[Entry]:
    """``rows`` with the splits of their folders, if they have none."""
    tops = {row.path.split("/")[0] for row in rows}
    if any(row.split for row in rows) or not are_splits(tops):
        return rows
    return [row._replace(split=split_of(row.path.split("/")[0])) for row in rows]


def _finish(layout: Layout, rows: list[Entry], settings: DataSettings) -> Layout:
    """Check classes, splits and groups; fill in the entries."""
    layout.labelled = rows = _group(_normalise(rows, layout), layout, settings.group)
    if not rows:
        return layout
    splits = {row.split for row in rows}
    counts = Counter((row.split, row.label) for row in rows)
    classes = {row.label for row in rows}
    if "train" not in splits and splits != {None}:
        layout.fault("has no training split, only", {str(split) for split in splits}, REMEDY)
    least = settings.min_images_per_class
    main = None if None in splits else "train"
    few = {label for label in classes if counts[main, label] < least}
    lacking = {split: {label for label in classes if not counts[split, label]} for split in splits}
    if least:
        few |= set().union(*lacking.values())
        layout.skip(
            f"in classes with fewer than {least} pictures", [row.path for row in rows if row.label in few]
        )
        names = [f"'{label}' ({counts[main, label]})" for label in sorted(few)]
        if few:
            what = f"{len(few):,} classes with fewer than {least} pictures, or none in a split, are left out"
            layout.warnings.append(f"{what}: {listed(names)}")
        if few == classes:
            layout.fault(f"has no class with {least} pictures", few, "lower data.min_images_per_class")
    else:
        for split, labels in lacking.items():
            remedy = "add some, or leave such classes out with data.min_images_per_class"
            layout.fault(f"has no images in the split '{split}' of the classes", labels, remedy)
    rows = [row for row in rows if row.label not in few]
    layout.class_names = tuple(sorted({row.label for row in rows}))
    layout.entries = sorted(rows)
    if len(layout.class_names) == 1:
        name = layout.class_names[0]
        layout.warnings.append(
            f"all {len(rows):,} pictures are of one class, '{name}': nothing can be classified"
        )
    return layout


def composed(name: str) -> str:
    """``name`` in Unicode's composed form (NFC), in which names of classes are compared."""
    return unicodedata.normalize("NFC", name)


def _normalise(rows: list[Entry], layout: Layout) -> list[Entry]:
    """``rows`` with class names in composed form. Classes that look alike are faults."""
    unlabelled = [row.path for row in rows if not row.label]
    if len(unlabelled) == len(rows):
        return [row._replace(label=ONE_CLASS) for row in rows]
    layout.fault("has pictures without a label", unlabelled, "add labels, or leave these pictures out")
    written = {(row.split, row.label) for row in rows}
    names = {label: composed(label) for _, label in written}
    forms = Counter((split, names[label]) for split, label in written)
    twins = {
        f"{label} ({'composed' if label == names[label] else 'decomposed'})"
        for split, label in written
        if forms[split, names[label]] > 1
    }
    rename = "rename or merge them"
    layout.fault("contains classes whose names differ only in their Unicode form", twins, rename)
    cases = Counter(name.casefold() for name in {*names.values()})
    alike = {name for name in names.values() if cases[name.casefold()] > 1}
    layout.fault("contains classes that differ only in case", alike, rename)
    if all(map(str.isascii, names)):
        return rows
    return [row._replace(label=names[row.label]) for row in rows]


def _group(rows: list[Entry], layout: Layout, group: str) -> list[Entry]:
    """``rows`` with their groups: as they are for a column of a table, else by a pattern over the path."""
    if group.startswith(COLUMN):
        if not any(row.group for row in rows):
            layout.fault("has no table with groups", [group], "set data.labels to a table with this column")
    elif group:
        found = {row.path: re.search(group, row.path) for row in rows}
        without = [path for path, match in found.items() if not match or not match[1]]
        layout.fault("has pictures without a group", without, "correct the pattern data.group")
        rows = [row._replace(group=match[1] if (match := found[row.path]) else "") for row in rows]
    splits = defaultdict[str, set[str | None]](set)
    for row in rows if group else ():
        splits[row.group].add(row.split)
    across = sorted(name for name, places in splits.items() if len(places) > 1)
    if across:
        what = f"{len(across):,} groups are in more than one of the source's splits"
        layout.warnings.append(f"{what}: {listed(across, 5)}")
    return rows
