"""Pictures at a watched place that are not among the accepted ones yet: brought here, told apart by their bytes, copied whole."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from pipeline.data.archives import list_zip
from pipeline.data.decoding import read
from pipeline.data.folders import SPLIT_NAMES, list_folder
from pipeline.data.images import REFUSED_SUFFIXES, SUFFIXES
from pipeline.data.transfer import TransferFailed, fetch_from_repository, fetch_zip, masked
from pipeline.errors import BadInput, DarkroomError
from pipeline.files import digest_of, sha256, whole_file

WHERE = "params.yaml: retrain.watch"
THREADS, BATCH = 8, 16  # what takes long, hashing, decoding and writing, needs no interpreter lock
Item = TypeVar("Item")
Done = TypeVar("Done")


@dataclass(frozen=True)
class Picture:
    """A file: its relative posix ``name``, its class ``label`` ('' where it lies in no class's folder) and the hash of its bytes."""

    name: str
    label: str
    sha256: str

    @property
    def key(self) -> str:
        """Its bytes under this class: what is wrong there may be right elsewhere."""
        return f"{self.sha256}/{self.label}"


@dataclass(frozen=True)
class Arrival:
    """What a watched place holds, seen against the accepted pictures. Lists are sorted by name."""

    place: Path
    fresh: list[Picture]  # neither known nor set aside; so also an accepted name with other bytes, and accepted bytes with another class
    accepted: dict[str, Picture]  # by SHA-256
    known: int  # accepted already: the same bytes in the same class, by whatever name
    set_aside: int  # their bytes were found bad before
    gone: int  # accepted pictures that are not there any more, neither by name nor by bytes
    unsettled: int = 0  # still being written, or not to be read just now: left for the next time
    passed_over: int = 0  # of picture formats that are not read, or with names that are no plain UTF-8
    twins: tuple[Picture, ...] = ()  # accepted pictures whose bytes stand in ``accepted`` under another name

    @property
    def digest(self) -> str:
        """Names this version of the data: the names and bytes of all that is accepted or fresh."""
        return digest_of(sorted([picture.name, picture.sha256] for picture in (*self.accepted.values(), *self.twins, *self.fresh)))


def fetch(watch: str, repository: str, root: Path, beside: Path, max_bytes: int = 10**11, timeout_seconds: float = 3600.0) -> Path:
    """The folder or zip to look at: the path ``watch``, or what lies at that address or in that DVC repository, fetched into ``beside``.

    Raises ``BadInput`` for what cannot be used, ``DarkroomError`` for what may go better at another time.
    """
    if not watch:
        raise BadInput("is empty", where=WHERE, remedy="name a folder, a zip, the https address of a zip, or a path in retrain.repository")
    try:
        if repository:
            return fetch_from_repository(repository, watch, root, beside / "repository", timeout_seconds)
        if "://" in watch:
            return fetch_zip(watch, beside / "watched.zip", max_bytes, timeout_seconds)
    except TransferFailed as failure:
        kind, remedy = (DarkroomError, "the next run tries again") if failure.passing else (BadInput, "correct it, or see to the access")
        raise kind(masked(f"{watch}{' of ' * bool(repository)}{repository} {failure}"), where=WHERE, remedy=remedy) from None
    if not (root / watch).exists():
        raise BadInput(f"there is no folder or zip {root / watch}", where=WHERE, remedy="correct it, or mount what should be there")
    return root / watch


def look(place: Path, accepted: Path, known_bad: Mapping[str, str], settle_seconds: float = 0.0) -> Arrival:
    """What ``place`` holds; a file, or zip, changed less than ``settle_seconds`` ago waits. ``known_bad``: reasons by key."""
    if accepted.exists() and not accepted.is_dir():
        raise BadInput("is no folder", where="params.yaml: data.folder", remedy="unpack it: accepted pictures are added to a folder")
    here, home = place.resolve(), accepted.resolve()
    if here.is_relative_to(home) or home.is_relative_to(here):
        raise BadInput(f"{place} and the accepted pictures overlap", where=WHERE, remedy="let new pictures arrive in a folder apart")
    held, unreadable, _ = _survey(accepted) if accepted.exists() else ([], [], 0)
    if unreadable:
        raise DarkroomError("cannot be read", where=str(accepted / unreadable[0]), remedy="grant access to it, or dvc checkout")
    seen, unsettled, passed_over = _survey(place, settle_seconds)
    by_bytes: dict[str, Picture] = {}
    twins = tuple(picture for picture in held if by_bytes.setdefault(picture.sha256, picture) is not picture)
    classes = {(picture.sha256, picture.label) for picture in held}
    unknown = [picture for picture in seen if (picture.sha256, picture.label) not in classes]
    fresh = [picture for picture in unknown if picture.key not in known_bad]
    there = {*unsettled, *(picture.name for picture in seen), *(picture.sha256 for picture in seen)}
    gone = sum(picture.name not in there and picture.sha256 not in there for picture in held)
    known, set_aside = len(seen) - len(unknown), len(unknown) - len(fresh)
    return Arrival(place, fresh, by_bytes, known, set_aside, gone, len(unsettled), passed_over, twins)


def spread(work: Callable[[Item], Done], items: Sequence[Item]) -> Iterator[Done]:
    """``work`` of each item, in order, by ``THREADS`` threads."""
    with ThreadPoolExecutor(THREADS) as pool:
        for done in pool.map(lambda start: [work(item) for item in items[start : start + BATCH]], range(0, len(items), BATCH)):
            yield from done


def copy(place: Path, pictures: Sequence[Picture], target: Path) -> None:
    """Copy ``pictures``, as they were looked at, into the folder ``target``; one that lies there with the same bytes is left.

    Raises ``BadInput`` rather than overwrite other bytes, ``DarkroomError`` for a picture that has changed since.
    """

    def write(picture: Picture) -> None:
        path = target / picture.name
        if path.exists() and sha256(path) == picture.sha256:
            return
        if path.exists():
            raise BadInput("holds other bytes than the new picture", where=str(path), remedy="give one of them another name")
        data = read(place, picture.name)
        if hashlib.sha256(data).hexdigest() != picture.sha256:
            raise DarkroomError("has changed since it was looked at", where=f"{place}: {picture.name}", remedy="run it again")
        with whole_file(path) as beside:
            beside.write_bytes(data)

    list(spread(write, pictures))


def folders(name: str) -> tuple[str, str]:
    """The folders of the split and of the class in a picture's name; '' for one that is not there."""
    parts = name.split("/")[:-1]
    split = parts.pop(0) if parts and parts[0] in SPLIT_NAMES else ""
    return split, parts[0] if parts else ""


def _survey(place: Path, settle_seconds: float = 0.0) -> tuple[list[Picture], list[str], int]:
    """The pictures by name; the names of those that are unsettled or cannot be read; how many other files look like pictures."""
    files = (list_folder(place) if place.is_dir() else list_zip(place))[0]
    shown = [path for path in map(PurePosixPath, files) if not any(part.startswith((".", "__MACOSX")) for part in path.parts)]
    paths = [path for path in shown if path.suffix.lower() in SUFFIXES | REFUSED_SUFFIXES]
    names = [str(path) for path in paths if path.suffix.lower() in SUFFIXES and str(path).encode(errors="replace").decode() == str(path)]

    def identify(name: str) -> Picture | None:
        try:
            if 0 <= time.time() - (place / name if place.is_dir() else place).stat().st_mtime < settle_seconds:
                return None
            digest = hashlib.sha256(read(place, name)).hexdigest()
        except ValueError:
            digest = digest_of({"damaged": name})  # there are no bytes to hash; who reads it next finds out why
        except OSError:
            return None
        return Picture(name, folders(name)[1], digest)

    found = list(spread(identify, names))
    return [picture for picture in found if picture], [name for name, own in zip(names, found) if not own], len(paths) - len(names)
