"""Which commit, files, versions and machine a run belongs to. Addresses and texts are cleared of credentials."""

import hashlib
import json
import os
import platform
import re
import socket
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML

GIT_SECONDS = 5
BOOKS = ("dvc.lock", "metrics/")  # what a repro itself writes among git's files
PACKAGES = ("torch", "ray", "mlflow", "dvc", "numpy", "darkroom")
USER_PART = re.compile(r"(?<=://)[^/?#\s]*@")  # https://user:token@host
SECRET_FIELD = re.compile(
    r"([?&][^=&\s]*(?:token|key|secret|password|signature|credential)[^=&\s]*=)[^&\s]+", re.IGNORECASE
)


def redact(text: str) -> str:
    """``text`` without user names, passwords and tokens inside its URLs."""
    return SECRET_FIELD.sub(r"\1***", USER_PART.sub("", text))


@dataclass(frozen=True)
class Process:
    """One process, told apart from a later one with the same id by its start (seconds since the epoch)."""

    host: str
    pid: int
    started: float

    @classmethod
    def current(cls) -> "Process":
        """This process."""
        return cls(socket.gethostname(), os.getpid(), psutil.Process().create_time())

    def is_dead(self) -> bool:
        """Whether it is known to have ended; of another host nothing is known."""
        if self.host != socket.gethostname():
            return False
        try:
            process = psutil.Process(self.pid)
            return process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - self.started) > 1
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            return False


def git_tags(root: Path) -> dict[str, str]:
    """Tags: commit, ``dirty`` with the tracked files that differ from it (but for DVC's own books), branch and remote.

    They say ``unknown`` outside a repository.
    """
    commit = _git(root, "rev-parse", "HEAD") or "unknown"
    status = _git(root, "status", "--porcelain", "--untracked-files=no", "-z")
    changed = [
        path
        for path in (line[3:] for line in (status or "").split("\0"))
        if path and not path.startswith(BOOKS)
    ]
    dirty = "unknown" if status is None else str(bool(changed)).lower()
    tags = {"mlflow.source.git.commit": commit, "darkroom.git.dirty": dirty}
    if changed:
        tags["darkroom.git.changed"] = ", ".join(changed)[:1000]
    branch, remote = (
        _git(root, "rev-parse", "--abbrev-ref", "HEAD"),
        _git(root, "config", "--get", "remote.origin.url"),
    )
    if branch:
        tags["mlflow.source.git.branch"] = branch
    if remote:
        tags["mlflow.source.git.repoURL"] = redact(remote)
    return tags


def version_tags() -> dict[str, str]:
    """Tags: versions of Python and of the packages that can change a result, and the machine."""
    tags = {
        "darkroom.version.python": platform.python_version(),
        "darkroom.machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    return tags | {f"darkroom.version.{name}": version(name) for name in PACKAGES}


def version(package: str) -> str:
    """The installed version of a package, or ``unknown``."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def dvc_md5s(root: Path, stage: str) -> dict[str, str]:
    """DVC's md5 of each dependency and output of ``stage``, by path; what is absent is left out.

    Dependencies that another stage makes come from dvc.lock, which DVC keeps current for them while a stage runs. The
    stage's own entry is written only after it, so its outputs and its source files are hashed here, the way DVC does.
    """
    section = _stages(root / "dvc.yaml").get(stage) or {}
    made = {
        out["path"]: out["md5"]
        for name, entry in _stages(root / "dvc.lock").items()
        if name != stage
        for out in entry.get("outs", [])
        if "md5" in out
    }
    own = [
        *section.get("deps", []),
        *section.get("outs", []),
        *section.get("metrics", []),
        *section.get("plots", []),
    ]
    md5s = {
        path: made.get(path) or md5_of(root / path)
        for path in (next(iter(entry)) if isinstance(entry, dict) else entry for entry in own)
    }
    return {path: md5 for path, md5 in md5s.items() if md5}


def _stages(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    return (YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")) or {}).get("stages") or {}


def md5_of(path: Path) -> str:
    """DVC's md5 of a file or folder; empty where there is none."""
    if path.is_file():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    if not path.is_dir():
        return ""
    files = [file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    listing = sorted(
        ({"md5": md5_of(file), "relpath": file.relative_to(path).as_posix()} for file in files),
        key=lambda entry: entry["relpath"],
    )
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode()).hexdigest() + ".dir"


def _git(root: Path, *arguments: str) -> str | None:
    """What git answers, or None where it fails or does not answer."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, timeout=GIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip("\n") if done.returncode == 0 else None
