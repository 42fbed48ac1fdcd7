"""Flip single bits in every kind of file that a project keeps: `darkroom verify` has to name each."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

from pipeline.environment import Environment
from pipeline.errors import DarkroomError
from pipeline.tracking.trace import verify

KINDS = {
    "raw data": "data/raw/**/*",
    "processed data": "data/processed/*/**/*",
    "models": "models/*/*",
    "histories": "history/*/**/*",
    "metrics": "metrics/*",
    "plots": "plots/**/*",
    "reports": "reports/**/*",
    "DVC's cache": ".dvc/cache/files/md5/*/*",
    "run cache": ".dvc/cache/runs/*/*/*",
    "dvc.lock": "dvc.lock",
    "checkpoints": ".darkroom/trainings/*/checkpoints/*",
    "results of trainings": ".darkroom/trainings/*/**/*",
    "registered versions": "mlartifacts/models/*/artifacts/**/*",
    "files of runs": "mlartifacts/*/artifacts/**/*",
    "mlflow.db": "mlflow.db",
}


def environment_of(project: Path) -> Environment:
    """The environment of ``project`` with the default places."""
    database, artifacts = f"sqlite:///{project}/mlflow.db", str(project / "mlartifacts")
    return Environment(project, storage=project / ".darkroom", tracking_uri=database, artifacts=artifacts)


def flips(project: Path, number: int, seed: int) -> Iterator[tuple[str, Path, int, bool]]:
    """Flip ``number`` bits one by one, size and time kept: kind, file, bit, whether it is named.

    Before that, the project has no problem.
    """
    environment, choice = environment_of(project), random.Random(seed)
    assert verify(environment)[0] == []
    for index in range(number):
        kind = list(KINDS)[index % len(KINDS)]
        files = sorted(path for path in project.glob(KINDS[kind]) if path.is_file() and path.stat().st_size)
        file = choice.choice(files)
        before, data = file.stat(), file.read_bytes()
        bit = choice.randrange(8 * len(data))
        flip(file, bit)
        try:
            yield kind, file, bit, _is_named(environment, file)
        finally:
            _overwrite(file, data, before)
            file.chmod(before.st_mode)


def flip(file: Path, bit: int) -> None:
    """Flip a bit; size and time are kept."""
    before, damaged = file.stat(), bytearray(file.read_bytes())
    damaged[bit // 8] ^= 1 << bit % 8
    _overwrite(file, bytes(damaged), before)


def _is_named(environment: Environment, file: Path) -> bool:
    name = file.relative_to(environment.root).as_posix()
    try:
        problems = verify(environment)[0]
    except DarkroomError as error:  # dvc.lock cannot be read
        return name in str(error)
    return any(name in problem.path for problem in problems)


def _overwrite(file: Path, data: bytes, times: os.stat_result) -> None:
    file.chmod(0o644)
    file.write_bytes(data)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
