"""Checks of what neither DVC nor the registry verifies: trainings, the run cache, dvc.lock, mlflow.db."""

import os
import shlex
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from dvc.config import Config
from filelock import FileLock, Timeout
from ruamel.yaml import YAML

from pipeline.errors import DarkroomError
from pipeline.files import HASHES, check_hashes, digest_of, read_json, sha256, write_text
from pipeline.params import PARAMS
from pipeline.process import exclusive, output
from pipeline.tracking.damaged import DAMAGED, moved_away
from pipeline.tracking.dvc_lock import CARD, CURRENT, STALE, WEIGHTS, DvcLock, Problem, locked_stages
from pipeline.tracking.lineage import md5_of, paths_in, stages_of

DATABASE_CHANGED = (
    "another program, such as MLflow's own pages, has written it, or it is damaged; "
    "darkroom sync accepts it as it is"
)
DATABASE_DAMAGED = "move it away; darkroom sync writes a new one with the runs of history/ and reports/"
COMMANDS = ("mkdir ", "dvc checkout ", "dvc pull ", "dvc commit ", "git checkout ")
UNRECORDED = ("search", "retraining", "tracking", "downloads")  # files in .darkroom that change all the time


def record_database(database: Path) -> None:
    """Write the SHA-256 of MLflow's ``database`` into a file next to it."""
    if database.is_file():  # at the end of a process: a full disk is no error of its command
        with suppress(OSError, Timeout), FileLock(f"{database}.lock", timeout=60):
            write_text(_digest_file(database), sha256(database))


def check_database(database: Path) -> Iterator[Problem]:
    """Whether ``database`` is as Darkroom left it, and SQLite can read all of it."""
    if not database.is_file():
        return
    record = _digest_file(database)
    recorded, found = record.read_text(errors="replace") if record.is_file() else "", sha256(database)
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            is_whole = connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    except sqlite3.DatabaseError:
        is_whole = False
    if not is_whole:
        yield Problem(database.name, "differs", recorded, found, DATABASE_DAMAGED)
    elif recorded not in ("", found):  # an earlier version of Darkroom recorded nothing
        yield Problem(database.name, "stale", recorded, found, DATABASE_CHANGED)


def _digest_file(database: Path) -> Path:
    return database.with_name(f"{database.name}.sha256")


def check_trainings(storage: Path) -> tuple[list[Problem], int]:
    """The damaged files of trainings, and the number of files that were checked."""
    problems, number = list[Problem](), 0
    for folder in sorted(path for path in (storage / "trainings").glob("*") if path.is_dir()):
        if (folder / HASHES).is_file() or not _is_held(folder.with_suffix(".lock")):
            found, count = _check_training(folder)
            problems, number = problems + found, number + count
    return problems, number


def _check_training(folder: Path) -> tuple[list[Problem], int]:
    """As ``check_trainings``, of one training."""
    if not (folder / HASHES).is_file():
        checkpoints = sorted(folder.glob("checkpoints/step-*.json"))
        return [problem for each in checkpoints for problem in _check_checkpoint(each)], 2 * len(checkpoints)
    with suppress(FileNotFoundError):  # another training has just removed this old one
        number = sum(1 for path in folder.rglob("*") if path.is_file())
        if (first := check_hashes(folder)) and (folder / HASHES).is_file():
            remedy = moved_away(str(folder))
            return [Problem(str(folder / first[0]), "differs", *first[1:], remedy)], number
        return [], number
    return [], 0


def _is_held(lock: Path) -> bool:
    """Whether a process holds this lock file, such as that of a training which is running."""
    try:
        with suppress(OSError), exclusive(lock, "is held"):  # OSError: not ours to lock
            pass
        return False
    except DarkroomError:
        return True


def _check_checkpoint(metadata: Path) -> Iterator[Problem]:
    path = metadata.with_suffix(".safetensors")
    try:
        recorded = str(read_json(metadata)["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        recorded = ""
    try:
        found = digest_of([path.name, sha256(path)])
    except OSError:
        found = ""
    is_whole = found and found == recorded
    if not is_whole and metadata.is_file():  # else its training has removed it meanwhile
        # The training continues from the checkpoint before it.
        remedy = moved_away(*(str(file) for file in (metadata, path) if file.is_file()))
        yield Problem(str(path), "differs", recorded, found, remedy)


def unrecorded(storage: Path, root: Path) -> dict[str, int]:
    """The numbers of files whose hash nothing records, by folder: most change while they are used."""
    folders = {name: storage / name for name in UNRECORDED} | {"damaged": root / DAMAGED}
    counts = {name: sum(path.is_file() for path in each.rglob("*")) for name, each in folders.items()}
    counts["trainings"] = sum(
        path.is_file() and path.parent.name != "checkpoints"
        for folder in (storage / "trainings").glob("*/")
        if not (folder / HASHES).is_file()
        for path in folder.rglob("*")
    )
    return {name: number for name, number in counts.items() if number}


def check_run_cache(lock: DvcLock) -> tuple[list[Problem], int]:
    """The damaged entries of DVC's run cache, and the number of its entries. Their names are hashes."""
    from dvc.utils import dict_sha256

    problems, paths = list[Problem](), sorted((lock.cache / "runs").glob("*/*/*"))
    for path in paths:
        try:
            entry = YAML(typ="safe", pure=True).load(path)
            found = dict_sha256(entry, exclude=["size", "nfiles"])
            wrong = list(_wrong_sizes(lock, entry))
        except Exception:  # of YAML, and of what is no longer a mapping
            found, wrong = "unreadable", []
        name = os.path.relpath(path, lock.root)
        if found != path.name or wrong:
            expected, other = (path.name, found) if found != path.name else wrong[0]
            problems.append(Problem(name, "differs", expected, other, moved_away(name)))
    return problems, len(paths)


def check_lock_file(lock: DvcLock) -> Iterator[Problem]:
    """What dvc.lock says otherwise than the files and dvc.yaml."""
    plan = stages_of(lock.root / "dvc.yaml")
    for name, entry in (locked_stages(lock.root / CURRENT) or {}).items():
        section = plan.get(name)
        if name.partition("@")[0] in plan and section is None:  # of a foreach or matrix
            continue
        if section is None:
            yield Problem(f"{CURRENT}: {name}", "stale", name, "", "dvc.yaml has no such stage")
            continue
        recorded = [entry.get("cmd"), *(sorted(_paths(entry, side)) for side in ("deps", "outs"))]
        recorded.append(sorted(entry.get("params", {})))
        outs = [path for kind in ("outs", "metrics", "plots") for path in paths_in(section, kind)]
        planned = [section.get("cmd"), sorted(paths_in(section, "deps")), sorted(outs)]
        files = (
            next(iter(each)) if isinstance(each, dict) else PARAMS.name for each in section.get("params", [])
        )
        planned.append(sorted(set(files)))
        for before, now in zip(recorded, planned):
            if before != now and "${" not in str(now):
                yield Problem(f"{CURRENT}: {name}", "stale", str(before), str(now), STALE)
        for expected, found in _wrong_sizes(lock, entry):
            remedy = f"dvc commit --force {shlex.quote(name)}"
            yield Problem(f"{CURRENT}: {name}", "differs", expected, found, remedy)


def _paths(entry: dict[str, Any], side: str) -> list[str]:
    return [item["path"] for item in entry.get(side, [])]


def _wrong_sizes(lock: DvcLock, entry: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The recorded and found size, or number of files, of contents that are in DVC's cache."""
    for item in [*entry.get("deps", []), *entry.get("outs", [])]:
        md5, path = item.get("md5", ""), lock.root / item["path"]
        listing = lock.listing(item["path"], md5)
        files = [lock.object_path(each) for each in (listing.values() if listing else [md5])]
        if not listing and md5.endswith(".dir"):
            continue
        if not all(file.is_file() for file in files):
            files = [path] if not listing and lock.md5(item["path"]) == md5 else []
        size = sum(file.stat().st_size for file in files)
        if files and item.get("size", size) != size:
            yield f"size {item['size']} of {item['path']}", str(size)
        if listing and item.get("nfiles", len(listing)) != len(listing):
            yield f"nfiles {item['nfiles']} of {item['path']}", str(len(listing))


def with_copy(problem: Problem, lock: DvcLock, versions: list[Path], storage: Path) -> Problem:
    """The problem, with a remedy that copies the file if the registry, models/ or a training has it."""
    path = lock.root / problem.path
    if path.name not in (WEIGHTS, CARD) or not problem.expected:
        return problem
    hashed = sha256 if len(problem.expected) == 64 else md5_of
    folders = [*versions, lock.root / "models", storage / "trainings"]
    for copy in (copy for folder in folders for copy in sorted(folder.rglob(path.name))):
        if copy != path and hashed(copy) == problem.expected:
            make = shlex.join(["mkdir", "-p", str(path.parent)])
            first = moved_away(problem.path) if problem.found else make
            return replace(problem, remedy=f"{first} && {shlex.join(['cp', str(copy), problem.path])}")
    return problem


def run_remedies(root: Path, problems: list[Problem], storage: Path) -> Iterator[str]:
    """Run the remedies that are commands, each once; a line for each. None removes a damaged file.

    One is only moved for `dvc pull` if the project has a remote, and nothing of a training that has started
    or was corrected since the check.
    """
    has_remote = bool(Config(str(root / ".dvc"), validate=False).get("remote"))
    for remedy, problem in {problem.remedy: problem for problem in problems}.items():
        if not remedy.startswith(COMMANDS) or ("dvc pull" in remedy and not has_remote):
            continue
        try:
            with _still_damaged(problem, storage) as is_damaged:
                if is_damaged:
                    script, programs = f'PATH="$0:$PATH"; {remedy}', str(Path(sys.executable).parent)
                    output("sh", "-c", script, programs, name=remedy, cwd=root, timeout_seconds=3600)
            yield f"ran: {remedy}" if is_damaged else f"{problem.path}: changed since the check"
        except DarkroomError as error:
            yield f"warning: {error.what}"
        except OSError as error:  # of a lock that is not ours
            yield f"warning: {error}"


@contextmanager
def _still_damaged(problem: Problem, storage: Path) -> Iterator[bool]:
    """Whether the problem is still there; of a training, whose lock is held. Raises if it has started."""
    trainings = (storage / "trainings").glob("*/")
    folder = next((each for each in trainings if each in Path(problem.path).parents), None)
    if folder is None:
        yield True
        return
    with exclusive(folder.with_suffix(".lock"), f"{folder.name} is being trained"):
        yield problem.path in {each.path for each in _check_training(folder)[0]}
