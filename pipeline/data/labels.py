"""Tables of pictures and their classes: CSV, TSV, JSON lines, Tiny ImageNet's ``val_annotations.txt``."""

import io
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from pipeline.data.archives import clean
from pipeline.data.findings import Findings
from pipeline.data.split_names import split_of
from pipeline.errors import listed

if TYPE_CHECKING:
    pass

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
PATHS = (
    "file_name",
    "filename",
    "file",
    "path",
    "filepath",
    "image",
    "image_path",
    "image_id",
    "img",
    "name",
    "id",
)
LABELS = ("label", "labels", "class", "class_name", "category", "target", "species", "y")
SPLITS = ("split", "subset", "partition", "set")
ANNOTATIONS = "_annotations.txt"
REMEDY = f"name the columns '{PATHS[0]}' and '{LABELS[0]}', and if there are splits '{SPLITS[0]}'"


class LabelTable:
    """A row for each picture. ``columns`` are those of paths, labels and splits; '' if missing."""

    def __init__(self, name: str, data: bytes) -> None:
        """Raises ``ValueError`` if ``data`` is not a table."""
        import pandas as pd

        self.name = name
        if PurePosixPath(name).suffix.lower() in TABLES[:2]:
            first = data[: data.find(b"\n") + 1 or None].decode("utf-8-sig", "replace")
            separator = max(",;\t", key=first.count)
            self._table = pd.read_csv(
                io.BytesIO(data), sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig"
            )
        else:
            rows = pd.read_json(io.BytesIO(data), lines=True, dtype=False)
            self._table = rows.astype(str)
        self.columns = tuple(map(self._find, (PATHS, LABELS, SPLITS)))
        if len(self._table.columns) == 2 and not all(self.columns[:2]):
            self.columns = (*map(str, self._table.columns), "")

    def _find(self, known: Sequence[str]) -> str:
        columns = {
            str(column).strip().lower().replace(" ", "_"): str(column) for column in self._table.columns
        }
        return next((columns[name] for name in known if name in columns), "")

    @property
    def usable(self) -> bool:
        """Whether the columns of paths and labels are known."""
        return all(self.columns[:2])

    def rows(
        self, pictures: Sequence[str], group: str, findings: Findings
    ) -> list[tuple[str, str | None, str, str]]:
        """Path, split, class and group of each picture in the table. ``group`` is a column, or ''."""
        paths, labels, splits = self.columns
        header = listed(map(repr, map(str, self._table.columns)))
        if not self.usable:
            what = f"has a table without a column of paths or of labels; its columns are {header}"
            findings.fault(what, [self.name], REMEDY)
            return []
        if group and group not in self._table.columns:
            findings.fault(
                f"has no column '{group}' in its table; its columns are {header}",
                [self.name],
                "correct data.group",
            )
            return []
        wanted = [paths, labels, splits or labels, group or labels]
        found: dict[str, tuple[str | None, str, str]] = {}
        missing, twice, unknown = list[str](), list[str](), set[str]()
        find = _Finder(pictures, str(PurePosixPath(self.name).parent))
        for path, label, split, own_group in self._table[wanted].itertuples(index=False):
            picture = find(clean(path.strip()))
            row = (split_of(split) if splits else None, label.strip(), own_group if group else "")
            if picture is None:
                missing.append(path)
            elif found.setdefault(picture, row) != row:
                twice.append(path)
            if splits and row[0] is None:
                unknown.add(split)
        findings.fault("has pictures with several classes in its table", twice, "keep one line for each")
        findings.fault("has unknown splits in its table", unknown, "use train, validation and test")
        findings.fault(
            "has pictures without a class in its table",
            [path for path, row in found.items() if not row[1]],
            "fill in the column",
        )
        if missing and not found:
            findings.fault("has none of the pictures that its table names", missing, REMEDY)
        elif missing:
            findings.warnings.append(
                f"{self.name} names {len(missing):,} pictures that are not there: {listed(missing, 5)}"
            )
        findings.skip(f"not in {self.name}", set(pictures) - found.keys())
        return [(path, *row) for path, row in found.items()]


class _Finder:
    """Find a picture by its path below the table's folder or the root, by its name, or without its suffix."""

    def __init__(self, pictures: Sequence[str], folder: str) -> None:
        self._folder, self._paths = folder, set(pictures)
        names = [(picture, PurePosixPath(picture)) for picture in pictures]
        keys = [(key, picture) for picture, path in names for key in {path.name, path.stem}]
        counts = Counter(key for key, _ in keys)
        self._keys = {key: picture for key, picture in keys if counts[key] == 1}

    def __call__(self, name: str) -> str | None:
        for path in (f"{self._folder}/{name}", name):
            if path in self._paths:
                return path
        return self._keys.get(name.rpartition("/")[2])


def read_annotations(name: str, data: bytes, pictures: Iterable[str]) -> dict[str, str]:
    """The classes of the pictures below the folder of ``name``: lines of file, tab, class, ..."""
    lines = (line.split("\t") for line in data.decode("utf-8", "replace").splitlines())
    labels = {line[0]: line[1].strip() for line in lines if len(line) > 1}
    folder = name.rpartition("/")[0] + "/"
    near = (picture for picture in pictures if picture.startswith(folder))
    return {each: labels[base] for each in near if (base := each.rpartition("/")[2]) in labels}
