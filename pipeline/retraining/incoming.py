"""New pictures at ``retrain.watch``: downloaded if needed, compared with the accepted ones by their bytes,
copied atomically."""

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
from pipeline.files import atomic_write, digest_of, sha256

WHERE = "params.yaml: retrain.watch"
THREADS, BATCH = 8, 16  # hashing, decoding and writing release the interpreter lock
Item = TypeVar("Item")
Done = TypeVar("Done")


@dataclass(frozen=True)
class Picture:
    """A file: its relative posix ``name``, its class ``label`` ('' if it is in no class folder) and the hash
    of its bytes."""

    name: str
    label: str
    sha256: str

    @property
    def key(self) -> str:
        """Bytes and class: the same bytes may be wrong in one class and right in another."""
        return f"{self.sha256}/{self.label}"


@dataclass(frozen=True)
class Arrival:
    """The contents of the watched place, compared with the accepted pictures. Lists are sorted by name."""

    place: Path
    fresh: list[
        Picture
    ]  # neither accepted nor quarantined: also an accepted name with other bytes or the other way round
    accepted: dict[str, Picture]  # by SHA-256
    known: int  # accepted already: the same bytes in the same class, under any name
    set_aside: int  # quarantined before
    gone: int  # accepted pictures that are not at the watched place, neither by name nor by bytes
    unsettled: int = 0  # changed recently or not readable: left for the next retraining
    passed_over: int = 0  # with a picture format or a name (not UTF-8) that is not read
    twins: tuple[Picture, ...] = ()  # accepted pictures whose bytes are in ``accepted`` under another name

    @property
    def digest(self) -> str:
        """Identifies this version of the data: names and bytes of all accepted and fresh pictures."""
        return digest_of(
            sorted(
                [picture.name, picture.sha256]
                for picture in (*self.accepted.values(), *self.twins, *self.fresh)
            )
        )


def fetch(
    watch: str,
    repository: str,
    root: Path,
    beside: Path,
    max_bytes: int = 10**11,
    timeout_seconds: float = 3600.0,
) -> Path:
    """The folder or zip with new pictures: the path ``watch``, or a download into ``beside`` from that
    address or DVC repository.

    Raises ``BadInput`` for settings that cannot work, ``DarkroomError`` for failures that may be temporary.
    """
    if not watch:
        raise BadInput(
            "is empty",
            where=WHERE,
            remedy="name a folder, a zip, the https address of a zip, or a path in retrain.repository",
        )
    try:
        if repository:
            return fetch_from_repository(repository, watch, root, beside / "repository", timeout_seconds)
        if "://" in watch:
            return fetch_zip(watch, beside / "watched.zip", max_bytes, timeout_seconds)
    except TransferFailed as failure:
        kind, remedy = (
            (DarkroomError, "run it again later")
            if failure.passing
            else (BadInput, "correct the setting, or grant access")
        )
        raise kind(
            masked(f"{watch}{' of ' * bool(repository)}{repository} {failure}"), where=WHERE, remedy=remedy
        ) from None
    if not (root / watch).exists():
        raise BadInput(
            f"there is no folder or zip {root / watch}",
            where=WHERE,
            remedy="correct the setting, create or mount the folder",
        )
    return root / watch


def look(place: Path, accepted: Path, known_bad: Mapping[str, str], settle_seconds: float = 0.0) -> Arrival:
    """Compare ``place`` with the folder ``accepted``.

    A file or zip that changed less than ``settle_seconds`` ago is left out. ``known_bad``: quarantined
    pictures, reasons by key.
    """
    if accepted.exists() and not accepted.is_dir():
        raise BadInput(
            "is not a folder",
            where="params.yaml: data.folder",
            remedy="unpack it: new pictures can only be added to a folder",
        )
    here, home = place.resolve(), accepted.resolve()
    if here.is_relative_to(home) or home.is_relative_to(here):
        raise BadInput(
            f"{place} and the accepted pictures overlap",
            where=WHERE,
            remedy="use another folder for new pictures",
        )
    held, unreadable, _ = _survey(accepted) if accepted.exists() else ([], [], 0)
    if unreadable:
        raise DarkroomError(
            "cannot be read",
            where=str(accepted / unreadable[0]),
            remedy="grant access to it, or dvc checkout",
        )
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
        for done in pool.map(
            lambda start: [work(item) for item in items[start : start + BATCH]], range(0, len(items), BATCH)
        ):
            yield from done


def copy(place: Path, pictures: Sequence[Picture], target: Path) -> None:
    """Copy ``pictures`` from ``place`` into the folder ``target``; those that are there with the same bytes
    are skipped.

    Raises ``BadInput`` rather than overwrite other bytes, ``DarkroomError`` for a picture that changed after
    it was checked.
    """

    def write(picture: Picture) -> None:
        path = target / picture.name
        if path.exists() and sha256(path) == picture.sha256:
            return
        if path.exists():
            raise BadInput(
                "holds other bytes than the new picture of this name",
                where=str(path),
                remedy="give one of them another name",
            )
        data = read(place, picture.name)
        if hashlib.sha256(data).hexdigest() != picture.sha256:
            raise DarkroomError(
                "has changed since it was checked", where=f"{place}: {picture.name}", remedy="run it again"
            )
        with atomic_write(path) as beside:
            beside.write_bytes(data)

    list(spread(write, pictures))


def folders(name: str) -> tuple[str, str]:
    """The folders of split and class in a picture's name; '' for a missing one."""
    parts = name.split("/")[:-1]
    split = parts.pop(0) if parts and parts[0] in SPLIT_NAMES else ""
    return split, parts[0] if parts else ""


def _survey(place: Path, settle_seconds: float = 0.0) -> tuple[list[Picture], list[str], int]:
    """The pictures; the names of those that changed recently or cannot be read; the number of other picture
    files."""
    files = (list_folder(place) if place.is_dir() else list_zip(place))[0]
    shown = [
        path
        for path in map(PurePosixPath, files)
        if not any(part.startswith((".", "__MACOSX")) for part in path.parts)
    ]
    paths = [path for path in shown if path.suffix.lower() in SUFFIXES | REFUSED_SUFFIXES]
    names = [
        str(path)
        for path in paths
        if path.suffix.lower() in SUFFIXES and str(path).encode(errors="replace").decode() == str(path)
    ]

    def identify(name: str) -> Picture | None:
        try:
            if (
                0
                <= time.time() - (place / name if place.is_dir() else place).stat().st_mtime
                < settle_seconds
            ):
                return None
            digest = hashlib.sha256(read(place, name)).hexdigest()
        except ValueError:
            digest = digest_of(
                {"damaged": name}
            )  # there are no bytes to hash; reading it again gives the reason
        except OSError:
            return None
        return Picture(name, folders(name)[1], digest)

    found = list(spread(identify, names))
    return (
        [picture for picture in found if picture],
        [name for name, own in zip(names, found) if not own],
        len(paths) - len(names),
    )
