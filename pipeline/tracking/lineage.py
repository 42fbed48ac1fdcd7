"""Commit, file hashes, versions and machine of a run, without credentials."""

import hashlib
import json
import os
import platform
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML

from pipeline.errors import DarkroomError
from pipeline.git import git
from pipeline.limits import cpu_count

WRITTEN_BY_REPRO = ("dvc.lock", "metrics/")  # tracked by git, so not a change of the code
PACKAGES = ("torch", "ray", "mlflow", "dvc", "numpy", "darkroom")
USER_PART = re.compile(r"(?<=://)[^/?#\s]*@")  # https://user:token@host
SECRET_FIELD = re.compile(
    r"([?&][^=&\s]*(?:token|key|secret|password|signature|credential)[^=&\s]*=)[^&\s]+", re.IGNORECASE
)


def redact(text: str) -> str:
    """``text`` without the user names, passwords and tokens of its URLs."""
    return SECRET_FIELD.sub(r"\1***", USER_PART.sub("", text))


@dataclass(frozen=True)
class Process:
    """One process. ``started`` (seconds since the epoch): process ids are reused."""

    host: str
    pid: int
    started: float

    @classmethod
    def current(cls) -> "Process":
        """This process."""
        return cls(socket.gethostname(), os.getpid(), psutil.Process().create_time())

    def is_dead(self) -> bool:
        """Whether the process has ended; False for a process of another host."""
        if self.host != socket.gethostname():
            return False
        try:
            process = psutil.Process(self.pid)
            return process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - self.started) > 1
        except psutil.Error as error:
            return isinstance(error, psutil.NoSuchProcess)


def git_tags(root: Path) -> dict[str, str]:
    """Tags: commit, whether and which tracked files differ from it, branch and remote.

    What a repro writes is not counted as a difference. Outside a repository, commit and ``dirty`` are
    ``unknown``.
    """
    changed, dirty = list[str](), "unknown"
    with suppress(DarkroomError):
        paths = git("diff", "--name-only", "--no-renames", "--relative", "-z", "HEAD", cwd=root).split("\0")
        changed = [path for path in paths if path and not path.startswith(WRITTEN_BY_REPRO)]
        dirty = str(bool(changed)).lower()
    tags = {
        "mlflow.source.git.commit": git("rev-parse", "HEAD", cwd=root, check=False) or "unknown",
        "darkroom.git.dirty": dirty,
        "darkroom.git.changed": ", ".join(changed)[:1000],
        "mlflow.source.git.branch": git("rev-parse", "--abbrev-ref", "HEAD", cwd=root, check=False),
        "mlflow.source.git.repoURL": redact(git("config", "remote.origin.url", cwd=root, check=False)),
    }
    return {key: value for key, value in tags.items() if value}


def version_tags() -> dict[str, str]:
    """Tags: the machine, and the versions of Python and of the packages that can change a result."""
    tags = {
        "darkroom.version.python": platform.python_version(),
        "darkroom.machine": f"{platform.machine()}, {cpu_count()} cores",
    }
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            tags[f"darkroom.version.{package}"] = metadata.version(package)
    return tags


def trained_models(root: Path) -> list[str]:
    """The models <name> that have a stage ``train-<name>`` in dvc.yaml."""
    prefix = "train-"
    return sorted(
        name.removeprefix(prefix) for name in stages_of(root / "dvc.yaml") if name.startswith(prefix)
    )


def dvc_md5s(root: Path, stage: str) -> dict[str, str]:
    """DVC's md5 of each dependency and output of ``stage``, by path; missing files are left out.

    The md5s of other stages' outputs come from dvc.lock. The entry of ``stage`` is only written after it has
    run, so its own outputs and its source files are hashed here, as DVC does. A dependency that is a folder
    of outputs, such as models, stands for these outputs.
    """
    section = stages_of(root / "dvc.yaml").get(stage) or {}
    others = (entry for name, entry in stages_of(root / "dvc.lock").items() if name != stage)
    made = {out["path"]: out.get("md5", "") for entry in others for out in entry.get("outs", [])}
    paths = [path for key in ("deps", "outs", "metrics", "plots") for path in paths_in(section, key)]
    inside = {path: outs_in(path, made) for path in paths}
    paths = [each for path in paths for each in inside[path] or [path]]
    md5s = {path: made.get(path) or md5_of(root / path) for path in paths}
    return {path: md5 for path, md5 in md5s.items() if md5}


def paths_in(section: dict[str, Any], key: str) -> list[str]:
    """The paths that the section of a stage in dvc.yaml lists under ``key``, such as outs."""
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in section.get(key, [])]


def outs_in(folder: str, outs: dict[str, str]) -> dict[str, str]:
    """The outputs (md5s by path) below ``folder``."""
    return {path: md5 for path, md5 in outs.items() if path.startswith(f"{folder}/")}


def stages_of(path: Path) -> dict[str, Any]:
    """The stages of a dvc.yaml or dvc.lock by name; empty if there is no such file."""
    if not path.is_file():
        return {}
    return (YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")) or {}).get("stages") or {}


def md5_of(path: Path) -> str:
    """DVC's md5 of a file or folder; empty if there is none."""
    if path.is_file():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    if not path.is_dir():
        return ""
    return folder_md5({file.relative_to(path).as_posix(): md5_of(file) for file in files_in(path)})


def folder_md5(files: dict[str, str]) -> str:
    """DVC's md5 of a folder with these files: md5s by relative name."""
    listing = [{"md5": md5, "relpath": name} for name, md5 in sorted(files.items())]
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode()).hexdigest() + ".dir"


def files_in(folder: Path) -> Iterator[Path]:
    """The files in ``folder`` that DVC hashes."""
    return (file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
