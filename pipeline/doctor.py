"""What is missing or wrong with this installation, and how to mend it."""

import difflib
import importlib.metadata
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.environment import Environment
from pipeline.errors import BadInput, DarkroomError
from pipeline.params import PARAMS, read_file, read_section

FREE_BYTES = 2 * 1024**3
PACKAGES = ("torch", "ray", "mlflow", "dvc")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    well: bool
    what: str
    remedy: str = ""


def examine(environment: Environment) -> list[Finding]:
    """Look at Python, packages, settings, disk, git and devices."""
    return [
        *_python(),
        *_packages(environment.root),
        *_settings(),
        *_disk(environment.storage),
        *_git(environment.root),
        *_devices(environment),
    ]


def _python() -> Iterator[Finding]:
    text = ".".join(map(str, sys.version_info[:3]))
    yield Finding(
        sys.version_info >= (3, 11), f"Python {text}", "install Python 3.11 or newer, remove .venv and run: make install PYTHON=python3.11"
    )


def _packages(root: Path) -> Iterator[Finding]:
    lock = root / "requirements.lock"
    pinned = dict(line.strip().split("==") for line in lock.read_text().splitlines() if "==" in line) if lock.is_file() else {}
    for package in PACKAGES:
        try:
            found = importlib.metadata.version(package).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            yield Finding(False, f"{package} is not installed", "make install")
            continue
        wanted = pinned.get(package, found)
        yield Finding(
            found == wanted, f"{package} {found}" + ("" if found == wanted else f", requirements.lock says {wanted}"), "make install"
        )


def _settings() -> Iterator[Finding]:
    """Each section of params.yaml, by the class that reads it."""
    from pipeline.core import model_files
    from pipeline.core.settings import read_training
    from pipeline.data.settings import DataSettings
    from pipeline.data.sources import find as find_source
    from pipeline.evaluation.settings import EvaluationSettings
    from pipeline.retraining.gates import GateSettings
    from pipeline.retraining.settings import RetrainSettings

    readers: dict[str, Callable[[], Any]] = {
        "data": lambda: find_source(read_section("data", DataSettings).source),
        "evaluate": lambda: read_section("evaluate", EvaluationSettings),
        "gates": lambda: read_section("gates", GateSettings),
        "retrain": lambda: read_section("retrain", RetrainSettings),
        **{name: partial(read_training, name, model_files.find(name).Config) for name in model_files.names()},
    }
    try:
        sections = read_file()
    except DarkroomError as error:
        yield Finding(False, f"{error.where}: {error.what}", error.remedy)
        return
    well = []
    for name in sections:
        try:
            if name not in readers:
                near = difflib.get_close_matches(name, readers, 1)
                remedy = f"did you mean '{near[0]}'?" if near else f"known are: {', '.join(readers)}"
                raise BadInput("no such section", where=f"{PARAMS}: {name}", remedy=remedy)
            readers[name]()
            well.append(name)
        except DarkroomError as error:
            yield Finding(False, f"{error.where}: {error.what}", error.remedy)
    yield Finding(True, f"{PARAMS}: {', '.join(well)}")


def _disk(storage: Path) -> Iterator[Finding]:
    place = next(folder for folder in (storage, *storage.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    yield Finding(
        free > FREE_BYTES, f"{free / 1024**3:.1f} GiB free in {place}", "free some space, or set DARKROOM_STORAGE to another disk"
    )


def _git(root: Path) -> Iterator[Finding]:
    yield Finding(shutil.which("git") is not None, "git", "install git: DVC and the lineage of runs need it")
    yield Finding((root / ".dvc").is_dir(), "DVC is initialised", "run: git init && dvc init")
    yield Finding(shutil.which("dvc") is not None, "dvc is on the PATH", "activate the environment: source .venv/bin/activate")


def _devices(environment: Environment) -> Iterator[Finding]:
    import torch

    gpus = torch.cuda.device_count()
    well = environment.device != "cuda" or gpus > 0 or bool(environment.ray_address)
    where = f"cluster {environment.ray_address}" if environment.ray_address else f"{gpus} GPUs" if gpus else "CPU"
    yield Finding(well, f"workers {environment.workers} on {where}", "no CUDA device is seen: set DARKROOM_DEVICE=auto")
