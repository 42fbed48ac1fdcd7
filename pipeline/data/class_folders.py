"""Find splits and classes in the names of folders: ``class/...``, or ``train/class/...`` and the like."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from pipeline.data.findings import Findings
from pipeline.data.split_names import are_splits, is_split, split_of
from pipeline.errors import listed

ONE_CLASS = "all"  # the class of pictures without class folders
UNLABELLED = ("images", "image", "imgs", "pictures", "unlabeled", "unlabelled", "unknown")
REMEDY = "create a folder for each class, or train/ and test/ with a folder for each class in both"


class Entry(NamedTuple):
    """One picture."""

    path: str  # its name in the folder or archive: `folders.read_file(source, path)` gives its bytes
    split: str | None  # 'train', 'validation' or 'test'; None if the source has no splits
    label: str  # the name of its class; in a layout in Unicode's composed form (NFC)
    group: str = ""  # pictures of one group stay in one split; '' without groups


@dataclass(frozen=True)
class Structure:
    """Where the splits and classes are in the paths of pictures.

    ``prefix``: the enclosing folders, which are neither; ``depth``: their number. ``levels``: the folders
    below them, with the number of folders above their class folders. ``divided``: whether they are splits.
    ``one_class``: whether no picture is in a class folder.
    """

    prefix: str
    depth: int
    levels: Mapping[str, int]
    divided: bool
    one_class: bool

    @classmethod
    def of(cls, pictures: Sequence[str]) -> "Structure":
        """The structure of these paths, of which there is at least one."""
        depth = _num_enclosing(pictures)
        prefix = "".join(f"{part}/" for part in pictures[0].split("/")[:depth])
        tops = {name.split("/")[depth] for name in pictures if name.count("/") > depth}
        divided = are_splits(tops)
        levels = dict.fromkeys(tops, depth + divided)
        for top in tops if divided else ():  # such as seg_train/seg_train
            below = {name.split("/")[depth + 1] for name in pictures if name.split("/")[depth] == top}
            levels[top] += len(below) == 1 and all(split_of(name) == split_of(top) for name in below)
        found = cls(prefix, depth, levels, divided, one_class=False)
        return replace(found, one_class=not any(found.locate(name)[1] for name in pictures))

    def locate(self, name: str) -> tuple[str | None, str, str]:
        """Split, class ('' outside of a class folder) and class folder of a picture below ``prefix``."""
        parts = name.split("/")
        top = parts[self.depth]
        level = self.levels.get(top, self.depth)
        label = parts[level] if len(parts) > level + 1 else ""
        return split_of(top) if self.divided else None, label, "/".join(parts[: level + 1])


def find_classes(
    pictures: Sequence[str],
    folders: Iterable[str],
    known: Mapping[str, str],
    findings: Findings,
    grouped: bool = False,
) -> list[Entry]:
    """The split and class of each picture, by its path. ``known``: classes that are known otherwise.

    ``grouped``: whether sub-folders of classes may be groups, which several classes have. Enclosing
    folders are ignored. Adds what is wrong to ``findings``.
    """
    structure = Structure.of(pictures)
    depth, tops, divided = structure.depth, structure.levels, structure.divided
    if not divided and _are_mixed(tops, pictures, depth):
        what = "contains folders of which some look like splits, some like classes"
        findings.fault(what, tops, REMEDY)
        return []
    if not (divided or grouped) and _are_unclear(pictures, depth, findings):
        return []
    if divided:
        splits = [split_of(top) for top in tops]
        twice = [top for top in tops if splits.count(split_of(top)) > 1]
        findings.fault("contains several folders for one split", twice, "merge them")
    rows, loose, used = list[Entry](), list[str](), set[str]()
    for name in pictures:
        split, label, folder = structure.locate(name)
        used.add(folder)
        if not label:
            loose.append(name)
        rows.append(Entry(name, split, known.get(name) or label or ONE_CLASS))
    if structure.one_class:
        return rows
    findings.fault("contains images that are not in a class folder", set(loose) - known.keys(), REMEDY)
    empty = {
        name
        for name in folders
        if name.startswith(structure.prefix)
        and name.count("/") == tops.get(name.split("/")[depth], -1 if divided else depth)
    }
    findings.fault("contains class folders without images", empty - used, "fill or remove them")
    return _without_unlabelled(rows, findings)


def _num_enclosing(pictures: Sequence[str]) -> int:
    """How many folders enclose all pictures and are not classes."""
    depth, shallowest = 0, min(name.count("/") for name in pictures)
    while shallowest > depth + 1 and len({name.split("/")[depth] for name in pictures}) == 1:
        depth += 1
    return depth


def _are_mixed(tops: Collection[str], pictures: Sequence[str], depth: int) -> bool:
    """Whether some of the folders ``tops`` are splits and others not."""
    recognised = {top for top in tops if split_of(top)}
    if len(recognised) > 1 and are_splits(recognised):
        return True
    holders = {name.split("/")[depth] for name in pictures if name.count("/") > depth + 1}
    exact = {top for top in tops if is_split(top)}
    return len(exact) > 1 or bool(exact & holders)  # a class of trains may be called 'train'


def _are_unclear(pictures: Sequence[str], depth: int, findings: Findings) -> bool:
    """Whether every folder has the same sub-folders, so that either may be the classes. Adds a fault."""
    below = defaultdict[str, set[str]](set)
    for name in pictures:
        parts = name.split("/")
        if len(parts) < depth + 3:
            return False
        below[parts[depth]].add(parts[depth + 1])
    first = next(iter(below.values()))
    if len(below) < 2 or len(first) < 2 or any(names != first for names in below.values()):
        return False
    what = f"has the same sub-folders ({listed(sorted(first), 5)}) in each of its folders"
    remedy = "name the folders train and test if they are splits, merge them, or set data.labels"
    findings.fault(what, below, remedy)
    return True


def _without_unlabelled(rows: list[Entry], findings: Findings) -> list[Entry]:
    """Leave out a split whose only folder has a general name and is no class of the training split."""
    classes = defaultdict[str | None, set[str]](set)
    for row in rows:
        classes[row.split].add(row.label)
    for split, names in classes.items():
        if split not in (None, "train") and len(names) == 1:
            (name,) = names
            if name.lower() in UNLABELLED and name not in classes["train"]:
                paths = [row.path for row in rows if row.split == split]
                findings.skip(f"in the split '{split}', without a class", paths)
                findings.warnings.append(
                    f"the {len(paths):,} pictures of the split '{split}' have no classes"
                )
                rows = [row for row in rows if row.split != split]
    return rows
