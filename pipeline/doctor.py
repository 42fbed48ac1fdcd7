"""What is missing or wrong with this installation and project, and how to fix it."""

import importlib.metadata
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.environment import Environment
from pipeline.errors import DarkroomError
from pipeline.git import git
from pipeline.limits import cpu_count, memory_limit
from pipeline.params import PARAMS
from pipeline.process import in_thread
from pipeline.settings_check import find_faults
from pipeline.tracking.dvc_lock import RWLOCK, locked_stages, read_rwlock
from pipeline.tracking.lineage import redact
from pipeline.tracking.moved import moved_from

FREE_BYTES = 2 * 1024**3
WAIT_SECONDS = 4.0  # for one address
SQLITE_HEADER = b"SQLite format 3\0"  # sqlite.org/fileformat.html
REASONS = (
    "Connection refused",
    "Name or service not known",
    "No route to host",
    "Temporary failure in name resolution",
)
PACKAGES = ("torch", "ray", "mlflow", "dvc")


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    well: bool
    what: str
    remedy: str = ""
    is_warning: bool = False  # of a result: nothing stops a command


def examine(environment: Environment, brief: bool = False) -> list[Finding]:
    """Check packages, settings, disk, git, DVC's files, models, addresses and devices.

    ``brief`` leaves out what does not stop ``darkroom repro``: models, which it can train again, and the
    addresses of MLflow and the mirror. What it repairs at its start is a warning then.
    """
    root = environment.root
    checks = [
        _packages(root),
        _settings(),
        _disk(environment.storage),
        _git(root),
        _dvc_files(root, brief),
        _cluster(environment.ray_address),
        _devices(environment),
    ]
    if not brief:
        checks += [_models(root), _results(root), _tracking(environment), _mirror(environment.mirror, root)]
    return [finding for check in checks for finding in check]


def _packages(root: Path) -> Iterator[Finding]:
    remedy = "install Python 3.11 or newer, remove .venv and run: make install PYTHON=python3.11"
    yield Finding(sys.version_info >= (3, 11), "Python {}.{}.{}".format(*sys.version_info), remedy)
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
        what = f"{package} {found}" + f", requirements.lock says {wanted}" * (found != wanted)
        yield Finding(found == wanted, what, "make install")


def _settings() -> Iterator[Finding]:
    """The sections of params.yaml."""
    try:
        valid, faults = find_faults()
    except DarkroomError as error:
        valid, faults = [], [error]
    for fault in faults:
        yield Finding(False, f"{fault.where}: {fault.what}", fault.remedy)
    if valid:
        yield Finding(True, f"{PARAMS}: {', '.join(valid)}")


def _disk(storage: Path) -> Iterator[Finding]:
    place = next(folder for folder in (storage, *storage.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    remedy = "free some space, or set DARKROOM_STORAGE to another disk"
    yield Finding(free > FREE_BYTES, f"{free / 1024**3:.1f} GiB free in {place}", remedy)


def _git(root: Path) -> Iterator[Finding]:
    if not shutil.which("git"):
        yield Finding(False, "git is not on the PATH", "install git: DVC and MLflow's run tags need it")
    else:
        try:
            git("rev-parse", "--is-inside-work-tree", cwd=root)
            yield Finding(True, "the project is under git")
        except DarkroomError as error:
            what, remedy = f"git cannot use {root}: {error.what}", "see: git status"
            if "not a git repository" in error.what:
                what = f"{root} is not in a git repository"
                remedy = "run: git init; git add -A; git commit -m 'first commit'"
            yield Finding(False, what, remedy)
    well = (root / ".dvc").is_dir()
    what = "DVC is initialised" if well else f"{root} is not a DVC project"
    yield Finding(well, what, "run in the project's root: git init && dvc init")
    well = shutil.which("dvc") is not None
    what = f"dvc is {'' if well else 'not '}on the PATH"
    yield Finding(well, what, "activate the environment: source .venv/bin/activate")


def _dvc_files(root: Path, is_warning: bool) -> Iterator[Finding]:
    """dvc.lock and DVC's list of running commands: a crash or a merge conflict can damage them."""
    if locked_stages(root / "dvc.lock") is None:
        remedy = "run: git checkout dvc.lock; or `darkroom repro`, which restores it and keeps a copy"
        yield Finding(is_warning, "dvc.lock cannot be read", remedy, is_warning)
    if read_rwlock(root / RWLOCK) is None:
        remedy = f"delete it: rm {RWLOCK}; `darkroom repro` does this by itself"
        yield Finding(is_warning, f"{RWLOCK} is damaged, so every DVC command fails", remedy, is_warning)


def _models(root: Path) -> Iterator[Finding]:
    """The models that dvc.lock records."""
    from pipeline.core import model_files

    stages = (locked_stages(root / "dvc.lock") or {}).values()
    for output in (out["path"] for stage in stages for out in stage.get("outs", [])):
        folder = root / output
        if Path(output).parent != Path("models") or folder.is_file():
            continue
        missing = [name for name in (model_files.CARD, model_files.WEIGHTS) if not (folder / name).is_file()]
        lost = ", ".join(missing) if folder.is_dir() else "the folder"
        what = f"{output} is recorded in dvc.lock, but {lost} is missing"
        remedy = f"dvc checkout {output}, or dvc pull {output}; or train it again: dvc repro"
        yield Finding(False, what, remedy) if missing else Finding(True, f"{output} is trained")


def _results(root: Path) -> Iterator[Finding]:
    """What the last evaluation found wrong with the models."""
    from pipeline.evaluation import warnings

    for warned in warnings.read(root).values():
        for warning in warned:
            yield Finding(True, warning["what"], warning["remedy"], is_warning=True)


def _tracking(environment: Environment) -> Iterator[Finding]:
    """Whether the tracking server answers, or the file is a database that names this folder."""
    if former := moved_from(environment):
        what = f"the project was moved here from {former}; MLflow still names that folder"
        yield Finding(False, what, "darkroom sync")
    uri = environment.tracking_uri
    what, failure = f"runs go to {redact(uri)}", ""
    remedy = (
        "start the server or correct MLFLOW_TRACKING_URI; or train without it and run `darkroom sync` later"
    )
    if uri.startswith("sqlite:///"):
        database = Path(uri.removeprefix("sqlite:///"))
        with suppress(OSError), open(database, "rb") as file:
            if file.read(len(SQLITE_HEADER)) not in (b"", SQLITE_HEADER):
                failure = what = f"{database} is not an SQLite database"
                remedy = "restore it from a backup; or move it away and run: darkroom sync"
    elif failure := _probe(f"{uri.rstrip('/')}/health" if uri.startswith("http") else uri, is_page=True):
        what += f", which {failure}"
    yield Finding(not failure, what, remedy)


def _mirror(mirror: str, root: Path) -> Iterator[Finding]:
    """The folder or address that downloads are tried from first."""
    if not mirror:
        return
    scheme, _, path = mirror.rpartition("://")
    if scheme in ("", "file"):
        mirror, failure = str(root / path), "" if (root / path).is_dir() else ": no such folder"
    elif failure := _probe(mirror):
        failure = f" {failure}"
    remedy = "correct DARKROOM_MIRROR, or unset it to download from the publishers"
    yield Finding(not failure, f"DARKROOM_MIRROR: {redact(mirror)}{failure}", remedy)


def _cluster(address: str) -> Iterator[Finding]:
    """Whether the Ray cluster at RAY_ADDRESS accepts connections."""
    if address not in ("", "auto", "local"):
        failure = _probe(address if "://" in address else f"ray://{address}")
        remedy = "start the cluster or correct RAY_ADDRESS; unset it to train on this machine"
        yield Finding(not failure, f"RAY_ADDRESS: {address} {failure}".strip(), remedy)


def _probe(address: str, is_page: bool = False) -> str:
    """Why ``address`` cannot be used: 'does not answer ...'; '' if it answers within ``WAIT_SECONDS``.

    An http(s) address is requested: with ``is_page`` the page must exist, else any answer is accepted. For
    other addresses only the port is tried. It runs in a thread because name resolution has no time limit.
    """
    try:
        status = in_thread(lambda: _status(address)).result(WAIT_SECONDS)
    except (OSError, ValueError) as error:  # requests' errors and TimeoutError are OSErrors
        reason = next((text for text in REASONS if text in str(error)), type(error).__name__)
        if isinstance(error, TimeoutError) or "timed out" in str(error).lower():
            reason = f"nothing within {WAIT_SECONDS:g} s"
        return f"does not answer ({reason})"
    is_missing = is_page and status >= 400 and status != 401  # 401: a password is needed
    return f"answers with status {status}" if status >= 500 or is_missing else ""


def _status(address: str) -> int:
    """The HTTP status of ``address``; 200 for another address whose port accepts a connection."""
    import requests

    if address.startswith("http"):
        with requests.get(address, timeout=WAIT_SECONDS, stream=True, allow_redirects=False) as answer:
            return answer.status_code
    parts = urlsplit(address)
    if parts.hostname and parts.port:
        socket.create_connection((parts.hostname, parts.port), timeout=WAIT_SECONDS).close()
    return 200


def _devices(environment: Environment) -> Iterator[Finding]:
    from pipeline.launch.plan import check_device, local_devices

    yield Finding(True, f"{cpu_count()} cores and {memory_limit() / 1024**3:.1f} GiB of memory can be used")
    device, count = local_devices(environment)
    local = {"cpu": "CPU", "mps": "mps", "cuda": f"{count} GPU{'s' * (count > 1)}"}[device]
    where = f"cluster {environment.ray_address}" if environment.ray_address else local
    try:
        check_device(environment)
        yield Finding(True, f"workers {environment.workers} on {where}")
    except DarkroomError as error:
        yield Finding(False, f"{error.where}: {error.what}", error.remedy)
