"""What a folder or archive of pictures holds: the pictures, their splits, classes and groups, and its faults.

Nothing is decoded here. ``darkroom inspect`` and the stages ``download`` and ``preprocess`` read the same
``Layout``.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pipeline.data.folders import arrange, list_files
from pipeline.data.settings import DataSettings
from pipeline.errors import BadInput


class Entry(NamedTuple):
    """One picture."""

    path: str  # its name in the folder or archive: `folders.read_file(source, path)` gives its bytes
    split: str | None  # 'train', 'validation' or 'test'; None if the source has no splits
    label: str  # the name of its class
    group: str = ""  # pictures of one group stay in one split; '' without groups


@dataclass(frozen=True)
class Layout:
    """Pictures sorted by path, class names in alphabetical order, and a report of how they were found.

    ``skipped`` and ``faults`` map a reason to the names that it concerns. With a fault the source cannot be
    used. ``warnings`` are sentences. ``sidecars`` are the files, other than pictures, that were read.
    """

    entries: list[Entry] = field(default_factory=list)
    class_names: tuple[str, ...] = ()
    skipped: dict[str, list[str]] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    remedies: dict[str, str] = field(default_factory=dict)  # of the faults
    warnings: list[str] = field(default_factory=list)
    sidecars: list[str] = field(default_factory=list)


def read_layout(path: Path, settings: DataSettings) -> Layout:
    """The layout of the folder, zip, tar or .npz ``path``. Names all faults at once; never raises for them.

    Raises ``BadInput`` only if ``path`` is missing, or is a damaged or dangerous archive.
    """
    files, folders = list_files(path)
    try:
        found = arrange(files, folders, where=str(path))
    except BadInput as error:
        return Layout(faults={error.what: []}, remedies={error.what: error.remedy})
    splits: dict[str, str | None] = {
        split: split if len(found.splits) > 1 else None for split in found.splits
    }
    entries = [
        Entry(name, splits[split], found.class_names[label])
        for split, members in found.splits.items()
        for name, label in members
    ]
    return Layout(sorted(entries), found.class_names)
