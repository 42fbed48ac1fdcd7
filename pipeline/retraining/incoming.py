"""New pictures at ``retrain.watch``: downloaded if needed, compared by hash with the accepted ones."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from pipeline.data.arrays import Arrays
from pipeline.data.class_folders import ONE_CLASS, Structure
from pipeline.data.folders import is_system, list_files, read_file
from pipeline.data.images import REFUSED_SUFFIXES, SUFFIXES
from pipeline.data.labels import TABLES
from pipeline.data.reading import Layout, composed, read_layout
from pipeline.data.settings import DataSettings
from pipeline.data.split_names import is_split
from pipeline.data.transfer import TransferFailed, fetch_from_repository, fetch_zip, masked
from pipeline.errors import BadInput, DarkroomError
from pipeline.files import atomic_write, digest_of, sha256

WHERE = "params.yaml: retrain.watch"
MAX_BYTES, TIMEOUT_SECONDS = 10**11, 3600.0  # of a download
THREADS, BATCH = 8, 16  # hashing, decoding and writing release the GIL
Item = TypeVar("Item")
Done = TypeVar("Done")


@dataclass(frozen=True)
class Picture:
    """A file: relative POSIX path, class ('' if it is not in a class folder), SHA-256 of its bytes, split.

    The split is None if the accepted pictures have no splits.
    """

    name: str
    label: str
    sha256: str
    split: str | None = None

    @property
    def key(self) -> str:
        """Hash and class: the same bytes may be wrong in one class and right in another."""
        return f"{self.sha256}/{self.label}"


@dataclass(frozen=True)
class Arrival:
    """The contents of the watched place, compared with the accepted pictures. Lists are sorted by name."""

    place: Path = Path()
    accepted_place: Path = Path()
    fresh: Sequence[Picture] = ()  # not accepted in this class and not quarantined
    accepted: Sequence[Picture] = ()
    quarantined: int = 0  # quarantined before
    unsettled: int = 0  # changed recently or not readable: left for the next retraining
    passed_over: int = 0  # with a format that is not supported, or a name that is not UTF-8


def fetch(watch: str, repository: str, root: Path, downloads: Path) -> Path:
    """The folder or zip with new pictures: the path ``watch``, or a download into the folder ``downloads``.

    Raises ``BadInput`` for settings that cannot work, ``DarkroomError`` for failures that may be temporary.
    """
    try:
        if repository:
            return fetch_from_repository(repository, watch, root, downloads / "repository", TIMEOUT_SECONDS)
        if "://" in watch:
            return fetch_zip(watch, downloads / "watched.zip", MAX_BYTES, TIMEOUT_SECONDS)
    except TransferFailed as failure:
        what = masked(f"{watch}{' of ' * bool(repository)}{repository} {failure}")
        if failure.transient:
            raise DarkroomError(what, where=WHERE, remedy="run it again later") from None
        raise BadInput(what, where=WHERE, remedy="correct the setting, or grant access") from None
    if not (root / watch).exists():
        remedy = "correct the setting, create or mount the folder"
        raise BadInput(f"there is no folder or zip {root / watch}", where=WHERE, remedy=remedy)
    return root / watch


def look(
    place: Path,
    accepted: Path,
    quarantined: Mapping[str, str],
    settle_seconds: float = 0.0,
    settings: DataSettings | None = None,
) -> Arrival:
    """Compare ``place`` with the folder ``accepted``, which the stages read with ``settings``.

    Splits and classes are where they are among the accepted pictures; without these, as the stages would read
    ``place``. A file or zip that changed less than ``settle_seconds`` ago is left out. ``quarantined``:
    reasons by key. Raises ``BadInput`` if the stages cannot read ``accepted``, or nothing can be added to it.
    """
    if accepted.exists() and not accepted.is_dir():
        remedy = "unpack it: new pictures can only be added to a folder"
        raise BadInput("is not a folder", where="params.yaml: data.folder", remedy=remedy)
    here, home = place.resolve(), accepted.resolve()
    if here.is_relative_to(home) or home.is_relative_to(here):
        remedy = "use another folder for new pictures"
        raise BadInput(f"{place} and the accepted pictures overlap", where=WHERE, remedy=remedy)
    known = _read_accepted(accepted, settings or DataSettings())
    held = [each for each in _identify(accepted, known) if each]
    if len(held) < len(known):
        unreadable = next(iter(known.keys() - {picture.name for picture in held}))
        remedy = "grant access to it, or dvc checkout"
        raise DarkroomError("cannot be read", where=str(accepted / unreadable), remedy=remedy)
    names, passed_over = _list_pictures(place)
    structure = Structure.of([*known] or names) if known or names else None
    located = {name: _locate(structure, name) for name in names} if structure else {}
    seen = [picture for picture in _identify(place, located, settle_seconds) if picture]
    keys = {picture.key for picture in held}
    unknown = [picture for picture in seen if picture.key not in keys]
    fresh = [picture for picture in unknown if picture.key not in quarantined]
    return Arrival(
        place, accepted, fresh, held, len(unknown) - len(fresh), len(names) - len(seen), passed_over
    )


def spread(work: Callable[[Item], Done], items: Sequence[Item]) -> Iterator[Done]:
    """The results of ``work``, in the order of ``items``, computed by ``THREADS`` threads."""
    batches = [items[start : start + BATCH] for start in range(0, len(items), BATCH)]
    with ThreadPoolExecutor(THREADS) as pool:
        for done in pool.map(lambda batch: [work(item) for item in batch], batches):
            yield from done


def copy(place: Path, pictures: Sequence[Picture], target: Path) -> None:
    """Copy ``pictures`` from ``place`` into the folder ``target``, unless they are already in it.

    Raises ``BadInput`` if a file with the same name has other bytes, ``DarkroomError`` if a picture changed
    after it was checked.
    """

    def write(picture: Picture) -> None:
        path = target / picture.name
        if path.exists():
            if sha256(path) != picture.sha256:
                what = "has other bytes than the new picture with this name"
                raise BadInput(what, where=str(path), remedy="give one of them another name")
            return
        data = read_file(place, picture.name)
        if hashlib.sha256(data).hexdigest() != picture.sha256:
            what, where = "has changed since it was checked", f"{place}: {picture.name}"
            raise DarkroomError(what, where=where, remedy="run it again")
        with atomic_write(path) as temporary:
            temporary.write_bytes(data)

    list(spread(write, pictures))


def _read_accepted(folder: Path, settings: DataSettings) -> dict[str, tuple[str | None, str]]:
    """Split and class of the accepted pictures, by name."""
    files = (each.relative_to(folder) for each in folder.rglob("*") if each.is_file())
    exists = any(not any(map(is_system, file.parts)) for file in files)  # empty/.gitkeep is nothing
    layout = read_layout(folder, settings) if exists else Layout()
    layout.refuse(where=str(folder))
    tables = [settings.labels, *(name for name in layout.sidecars if name.lower().endswith(TABLES))]
    if layout.arrays or any(tables):
        what = "are in arrays" if layout.arrays else "have their classes in a table"
        remedy = "put them in class folders"
        where = "params.yaml: data.folder"
        raise BadInput(f"the pictures {what}, to which a retraining cannot add", where=where, remedy=remedy)
    return {entry.path: (entry.split, entry.label) for entry in layout.labelled}


def _locate(structure: Structure, name: str) -> tuple[str | None, str]:
    """Split and class of a new picture; without a class if its folder does not fit to ``structure``."""
    if not name.startswith(structure.prefix):
        return None, ""
    split, label, _ = structure.locate(name)
    top, *below = name.removeprefix(structure.prefix).split("/")
    misplaced = top not in structure.levels if structure.divided else is_split(top) and len(below) > 1
    if misplaced:
        return None, ""
    return split, composed(label) or (ONE_CLASS if structure.one_class else "")


def _list_pictures(place: Path) -> tuple[list[str], int]:
    """The names of the pictures, and the number of files that are not read."""
    listing = list_files(place)
    listing.refuse(where=str(place))
    if isinstance(listing, Arrays):
        remedy = "save each picture as a file"
        raise BadInput(f"{place} holds arrays, not files", where=WHERE, remedy=remedy)
    paths = [
        path
        for path in map(PurePosixPath, listing.files)
        if path.suffix.lower() in SUFFIXES | REFUSED_SUFFIXES and not any(map(is_system, path.parts))
    ]
    is_utf8 = lambda name: name.encode(errors="replace").decode() == name
    names = [str(path) for path in paths if path.suffix.lower() in SUFFIXES and is_utf8(str(path))]
    return names, len(paths) - len(names)


def _identify(
    place: Path, located: Mapping[str, tuple[str | None, str]], settle_seconds: float = 0.0
) -> Iterator[Picture | None]:
    """The pictures with their hashes; None for one that changed recently or cannot be read."""

    def identify(name: str) -> Picture | None:
        split, label = located[name]
        try:
            changed = (place / name if place.is_dir() else place).stat().st_mtime
            if 0 <= time.time() - changed < settle_seconds:
                return None
            digest = hashlib.sha256(read_file(place, name)).hexdigest()
        except ValueError:  # it is damaged and has no bytes to hash; the check `readable` gives the reason
            digest = digest_of({"damaged": name})
        except OSError:
            return None
        return Picture(name, label, digest, split)

    return spread(identify, sorted(located))
