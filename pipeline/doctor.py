"""What is missing or wrong with this installation and project, and how to fix it."""

import importlib.metadata
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from pipeline.environment import Environment, for_child
from pipeline.errors import DarkroomError
from pipeline.params import PARAMS
from pipeline.settings_check import find_faults
from pipeline.tracking.lineage import redact
from pipeline.tracking.moved import moved_from

FREE_BYTES = 2 * 1024**3
WAIT_SECONDS = 4.0  # for one address
SQLITE_HEADER = b"SQLite format 3\0"  # sqlite.org/fileformat.html
TEMPORARY = "Temporary failure in name resolution"
PACKAGES = ("torch", "ray", "mlflow", "dvc")


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    well: bool
    what: str
    remedy: str = ""


def examine(environment: Environment, brief: bool = False) -> list[Finding]:
    """Check packages, settings, disk, git, DVC's files, models, addresses and devices.

    ``brief`` leaves out what does not stop ``dvc repro``: models, which it can train again, and the addresses
    of MLflow and the mirror.
    """
    root = environment.root
    findings = [
        *_python(),
        *_packages(root),
        *_settings(),
        *_disk(environment.storage),
        *_git(root),
        *_dvc_files(root),
        *_cluster(environment.ray_address),
        *_devices(environment),
    ]
    if not brief:
        findings += [
            *_models(root),
            *_tracking(environment.tracking_uri),
            *_mirror(environment.mirror, root),
            *_moved(environment),
        ]
    return findings


def _python() -> Iterator[Finding]:
    text = ".".join(map(str, sys.version_info[:3]))
    remedy = "install Python 3.11 or newer, remove .venv and run: make install PYTHON=python3.11"
    yield Finding(sys.version_info >= (3, 11), f"Python {text}", remedy)


def _packages(root: Path) -> Iterator[Finding]:
    lock = root / "requirements.lock"
    lines = lock.read_text().splitlines() if lock.is_file() else []
    pinned = dict(line.strip().split("==") for line in lines if "==" in line)
    for package in PACKAGES:
        try:
            found = importlib.metadata.version(package).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            yield Finding(False, f"{package} is not installed", "make install")
            continue
        wanted = pinned.get(package, found)
        what = f"{package} {found}" + ("" if found == wanted else f", requirements.lock says {wanted}")
        yield Finding(found == wanted, what, "make install")


def _settings() -> Iterator[Finding]:
    """The sections of params.yaml."""
    try:
        valid, faults = find_faults()
    except DarkroomError as error:
        yield Finding(False, f"{error.where}: {error.what}", error.remedy)
        return
    for fault in faults:
        yield Finding(False, f"{fault.where}: {fault.what}", fault.remedy)
    yield Finding(True, f"{PARAMS}: {', '.join(valid)}")


def _disk(storage: Path) -> Iterator[Finding]:
    place = next(folder for folder in (storage, *storage.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    remedy = "free some space, or set DARKROOM_STORAGE to another disk"
    yield Finding(free > FREE_BYTES, f"{free / 1024**3:.1f} GiB free in {place}", remedy)


def _git(root: Path) -> Iterator[Finding]:
    git = shutil.which("git")
    remedy = "install git: DVC and MLflow's run tags need it"
    yield Finding(git is not None, "git" if git else "git is not on the PATH", remedy)
    if git:
        command = [git, "-C", str(root), "rev-parse", "--is-inside-work-tree"]
        options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 60, "check": False}
        done = subprocess.run(command, env=for_child({"LC_ALL": "C"}), **options)
        what, remedy = "the project is under git", ""
        if "not a git repository" in done.stderr:
            what = f"{root} is not in a git repository"
            remedy = "run: git init; git add -A; git commit -m 'first commit'"
        elif done.returncode:
            what, remedy = f"git cannot use {root}: {done.stderr.splitlines()[0]}", "see: git status"
        yield Finding(not done.returncode, what, remedy)
    initialised = (root / ".dvc").is_dir()
    what = "DVC is initialised" if initialised else f"{root} is not a DVC project"
    yield Finding(initialised, what, "run in the project's root: git init && dvc init")
    dvc = shutil.which("dvc") is not None
    what = "dvc is on the PATH" if dvc else "dvc is not on the PATH"
    yield Finding(dvc, what, "activate the environment: source .venv/bin/activate")


def _dvc_files(root: Path) -> Iterator[Finding]:
    """dvc.lock and DVC's list of running commands: a crash or a merge conflict can damage them."""
    if _locked_outputs(root) is None:
        remedy = "run: git checkout dvc.lock; or `darkroom repro`, which restores it and keeps a copy"
        yield Finding(False, "dvc.lock cannot be read", remedy)
    running = root / ".dvc/tmp/rwlock"
    try:
        if running.is_file():
            json.loads(running.read_bytes())
    except ValueError:
        remedy = "delete it: rm .dvc/tmp/rwlock; `darkroom repro` does this by itself"
        yield Finding(False, ".dvc/tmp/rwlock is damaged, so every DVC command fails", remedy)


def _models(root: Path) -> Iterator[Finding]:
    """The models that dvc.lock records."""
    from pipeline.core import model_files

    for output in _locked_outputs(root) or []:
        folder = root / output
        if Path(output).parent != Path("models") or folder.is_file():
            continue
        missing = [name for name in (model_files.CARD, model_files.WEIGHTS) if not (folder / name).is_file()]
        what = f"{output} is trained"
        if missing:
            lost = ", ".join(missing) if folder.is_dir() else "the folder"
            what = f"{output} is recorded in dvc.lock, but {lost} is missing"
        remedy = f"dvc checkout {output}, or dvc pull {output}; or train it again: dvc repro"
        yield Finding(not missing, what, remedy)


def _locked_outputs(root: Path) -> list[str] | None:
    """The paths of the outputs in dvc.lock; [] if there is no such file, None if it cannot be read."""
    from dvc.exceptions import DvcException
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils.strictyaml import load

    if not (root / "dvc.lock").is_file():
        return []
    try:
        stages = load(root / "dvc.lock", COMPILED_LOCKFILE_SCHEMA)[0].get("stages", {})
    except DvcException:
        return None
    return [out["path"] for stage in stages.values() for out in stage.get("outs", [])]


def _moved(environment: Environment) -> Iterator[Finding]:
    """Whether MLflow's local database still names the project's former folder."""
    if former := moved_from(environment):
        what = f"the project was moved here from {former}; MLflow still names that folder"
        yield Finding(False, what, "darkroom sync")


def _tracking(uri: str) -> Iterator[Finding]:
    """Whether the tracking server answers, or the file is a database."""
    shown = redact(uri)
    if uri.startswith("sqlite:///"):
        database = Path(uri.removeprefix("sqlite:///"))
        head = _first_bytes(database)
        if head and head != SQLITE_HEADER:
            remedy = "restore it from a backup; or move it away and run: darkroom sync"
            yield Finding(False, f"{database} is not an SQLite database", remedy)
        else:
            yield Finding(True, f"runs go to {shown}")
        return
    failure = _probe(f"{uri.rstrip('/')}/health", is_page=True) if uri.startswith("http") else _probe(uri)
    what = f"runs go to {shown}" + (f", which {failure}" if failure else "")
    remedy = (
        "start the server or correct MLFLOW_TRACKING_URI; or train without it and run `darkroom sync` later"
    )
    yield Finding(not failure, what, remedy)


def _mirror(mirror: str, root: Path) -> Iterator[Finding]:
    """The folder or address that downloads are tried from first."""
    if not mirror:
        return
    scheme, _, path = mirror.rpartition("://")
    remedy = "correct DARKROOM_MIRROR, or unset it to download from the publishers"
    if scheme in ("", "file"):
        shown, failure = str(root / path), "" if (root / path).is_dir() else ": no such folder"
    else:
        shown, failure = redact(mirror), _probe(mirror)
        failure = failure and f" {failure}"
    yield Finding(not failure, f"DARKROOM_MIRROR: {shown}{failure}", remedy)


def _cluster(address: str) -> Iterator[Finding]:
    """Whether the Ray cluster at RAY_ADDRESS accepts connections."""
    if not address or address in ("auto", "local"):
        return
    failure = _probe(address if "://" in address else f"ray://{address}")
    what = f"RAY_ADDRESS: {address}" + (f" {failure}" if failure else "")
    remedy = "start the cluster or correct RAY_ADDRESS; unset it to train on this machine"
    yield Finding(not failure, what, remedy)


def _probe(address: str, is_page: bool = False) -> str:
    """Why ``address`` cannot be used: 'does not answer ...'; '' if it answers within ``WAIT_SECONDS``.

    An http(s) address is requested: with ``is_page`` the page must exist, else any answer is accepted. For
    other addresses only the port is tried. Name resolution has no timeout, so all of this runs in a daemon
    thread.
    """
    import requests

    found: list[str] = []

    def work() -> None:
        try:
            if address.startswith("http"):
                answer = requests.get(address, timeout=WAIT_SECONDS, stream=True, allow_redirects=False)
                status = answer.status_code
                missing = is_page and status >= 400 and status != 401  # 401: a password is needed
                failed = status >= 500 or missing
                found.append(f"answers with status {status}" if failed else "")
                answer.close()
                return
            parts = urlsplit(address)
            if parts.hostname and parts.port:
                socket.create_connection((parts.hostname, parts.port), timeout=WAIT_SECONDS).close()
            found.append("")
        except (OSError, ValueError) as error:  # requests' errors are OSErrors
            found.append(f"does not answer ({_reason(error)})")

    thread = Thread(target=work, daemon=True)
    thread.start()
    thread.join(WAIT_SECONDS)
    return found[0] if found else f"does not answer (nothing within {WAIT_SECONDS:g} s)"


def _reason(error: Exception) -> str:
    """The reason given by the operating system, without the messages of libraries around it."""
    for text in ("Connection refused", "Name or service not known", "No route to host", TEMPORARY):
        if text in str(error):
            return text
    return f"nothing within {WAIT_SECONDS:g} s" if "timed out" in str(error).lower() else type(error).__name__


def _first_bytes(path: Path) -> bytes:
    """The first 16 bytes of a file; empty if it does not exist or cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(len(SQLITE_HEADER))
    except OSError:
        return b""


def _devices(environment: Environment) -> Iterator[Finding]:
    import torch

    gpus = torch.cuda.device_count()
    well = environment.device != "cuda" or gpus > 0 or bool(environment.ray_address)
    where = f"{gpus} GPUs" if gpus else "CPU"
    if environment.ray_address:
        where = f"cluster {environment.ray_address}"
    what = f"workers {environment.workers} on {where}"
    yield Finding(well, what, "no CUDA device was found: set DARKROOM_DEVICE=auto")
