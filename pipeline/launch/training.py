"""Start or resume a training, and write its result to models/ and history/."""

import hashlib
import importlib.metadata
import json
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pipeline
from pipeline.core import initial_weights, model_files
from pipeline.core.dataset import Dataset
from pipeline.core.model_files import WEIGHTS
from pipeline.core.settings import TrainingSettings
from pipeline.environment import Environment
from pipeline.errors import BadInput, DarkroomError
from pipeline.files import (
    HASHES,
    atomic_folder,
    digest_of,
    digest_of_tree,
    read_json,
    remove,
    sha256,
    write_hashes,
    write_json,
)
from pipeline.launch.plan import plan_resources
from pipeline.launch.ray_train import fit, open_mirror
from pipeline.launch.storage import Mirror
from pipeline.launch.worker import FINISHED, STOP
from pipeline.process import exclusive

CODE = ("core", "layers")  # besides the model's own code, the only code that determines the weights
POLL_SECONDS = 2.0
KEEP_FINISHED = 3

Listener = Callable[[Path], bool | None]  # a training's folder -> True to end the training


@dataclass(frozen=True)
class Training:
    """All that determines the result of a training.

    ``needs`` are the folders of the trained models that it needs, by name. ``fingerprint`` is a digest of
    params, code, data, seed, initial weights, needed models and the version of PyTorch.
    """

    name: str
    settings: TrainingSettings
    config: Any
    data: Dataset
    needs: Mapping[str, Path] = field(default_factory=dict)
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        root = Path(pipeline.__file__).parent
        weights = self.initial_weights()
        parts = {
            "name": self.name,
            "settings": json.loads(self.settings.model_dump_json()),
            "config": json.loads(self.config.model_dump_json()),
            "data": self.data.digest,
            "needs": {name: model_files.digest(folder) for name, folder in self.needs.items()},
            "initial_weights": hashlib.sha256(weights).hexdigest() if weights else "",
            "code": digest_of_tree(
                [root / part for part in (*CODE, model_files.code_path(self.name, root))], root
            ),
            "torch": importlib.metadata.version("torch"),
        }
        object.__setattr__(self, "fingerprint", digest_of(parts))

    def require_examples(self) -> None:
        """Raise ``BadInput`` if the data has less than one batch."""
        if (count := len(self.data.train)) < self.settings.batch_size:
            what = f"is larger than the training split ({count:,} examples)"
            where = f"params.yaml: {self.name}.training.batch_size"
            raise BadInput(what, where=where, remedy=f"set it to at most {count}")

    def require_rows(self, workers: int) -> None:
        """Raise ``BadInput`` if a batch has less than one row for each of ``workers``."""
        if workers > (rows := self.settings.batch_size):
            what, remedy = f"{workers} workers cannot share a batch of {rows}", f"use at most {rows} workers"
            raise BadInput(what, where="DARKROOM_WORKERS", remedy=f"{remedy}, or raise batch_size")

    def initial_weights(self) -> bytes:
        """The safetensors file of ``settings.initial_weights``; empty if there is none."""
        path = self.settings.initial_weights
        return initial_weights.read(Path(path)) if path else b""

    def folder(self, storage: Path) -> Path:
        """The folder of its checkpoints, metrics and result."""
        return storage / "trainings" / f"{self.name}-{self.fingerprint[:16]}"


@dataclass(frozen=True)
class Outcome:
    """The result of a training: its folder, which contains ``model/``, and the seconds of each part."""

    folder: Path
    times: dict[str, Any]


def train(
    training: Training,
    environment: Environment,
    model: Path | None,
    history: Path | None,
    listeners: list[Listener],
) -> Outcome:
    """Run ``training`` to its end. Writes ``model`` and ``history`` (metrics, samples, times) atomically.

    With None the result is only in the training's own folder.
    Call it inside :func:`training_lock`. During the training each listener is called every two seconds with
    the training's folder. If one returns True, the training ends at its next checkpoint with
    ``TrainingStopped``. Raises ``DarkroomError`` if the cluster is too small or the training fails.
    """
    began = time.time()
    folder = training.folder(environment.storage)
    mirror = open_mirror(environment, folder)
    if mirror and not _is_finished(folder):
        mirror.pull()  # it may have been started on another machine
    if _is_finished(folder):
        message = f"this training is already finished; using its result (to train again, delete {folder})"
        print(f"{training.name}: {message}", flush=True)
    else:
        if environment.workers != "auto":  # before Ray starts, which takes seconds
            training.require_rows(environment.workers)
        with plan_resources(environment) as plan:
            training.require_rows(plan.workers)
            (folder / STOP).unlink(missing_ok=True)
            if mirror:
                mirror.remove(STOP)
            with _call_listeners(folder, listeners, mirror):
                marks = fit(training, environment, plan, folder)
        if mirror:
            mirror.pull()
        finished = read_json(folder / FINISHED)
        times = finished["times"] | {"threads": plan.threads, "mode": plan.mode, "total": time.time() - began}
        times |= {"start": marks["entered"] - began, "shutdown": time.time() - marks["left"]}
        if environment.price_per_hour is not None:
            cost = times["total"] / 3600 * times["workers"] * environment.price_per_hour
            times |= {"price_per_hour": environment.price_per_hour, "cost": cost}
        write_json(folder / FINISHED, {**finished, "times": times})
    if not (folder / HASHES).is_file():
        write_hashes(folder)
    # If the driver was killed before it added its times, only the worker's are there.
    times = {
        "mode": "already finished",
        "total": time.time() - began,
        **read_json(folder / FINISHED)["times"],
    }
    if model and history:
        _write_outputs(folder, model, history, times)
    return Outcome(folder, times)


def _is_finished(folder: Path) -> bool:
    """Whether ``folder`` has a valid result. A damaged one is discarded; the last checkpoint restores it."""
    try:
        if read_json(folder / FINISHED)["sha256"] == sha256(folder / "model" / WEIGHTS):
            return True
    except (OSError, ValueError, KeyError, TypeError):
        pass
    for name in (FINISHED, HASHES):
        (folder / name).unlink(missing_ok=True)
    return False


@contextmanager
def training_lock(training: Training, environment: Environment) -> Iterator[None]:
    """Lock ``training``. Raises ``DarkroomError`` with exit code 75 if another process runs it.

    Temporary files that a killed process left in its folder are removed.
    """
    folder = training.folder(environment.storage)
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder.with_suffix(".lock"), "another process runs this training"):
        for temporary in list(folder.rglob(".*")):
            remove(temporary)
        yield


@contextmanager
def _call_listeners(folder: Path, listeners: list[Listener], mirror: Mirror | None) -> Iterator[None]:
    """Call the listeners every two seconds from a thread during the block, and once more at its end.

    Before each call new metrics and samples are pulled from ``mirror``.
    """
    stop = threading.Event()

    def poll() -> None:
        while not stop.wait(POLL_SECONDS):
            if mirror:
                with suppress(DarkroomError):  # the last pull raises the error
                    mirror.pull("metrics.jsonl", "samples/")
            if any([listener(folder) for listener in listeners]):
                (folder / STOP).touch()
                if mirror:
                    mirror.send(STOP)

    thread = threading.Thread(target=poll, name="listeners", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=30)
        if mirror:
            mirror.pull("metrics.jsonl", "samples/")
        for listener in listeners:
            listener(folder)


def _write_outputs(folder: Path, model: Path, history: Path, times: dict[str, Any]) -> None:
    with atomic_folder(model) as temporary:
        shutil.copytree(folder / "model", temporary, dirs_exist_ok=True)
    with atomic_folder(history) as temporary:
        for name in ("metrics.jsonl", "system.jsonl", "run.json"):  # tracking writes the last two
            if (folder / name).is_file():
                shutil.copy(folder / name, temporary)
        if (folder / "samples").is_dir():
            shutil.copytree(folder / "samples", temporary / "samples", ignore=shutil.ignore_patterns(".*"))
        write_json(temporary / "times.json", times)
        write_hashes(temporary)


def remove_old_trainings(environment: Environment, name: str, keep: Collection[Path]) -> None:
    """Remove all finished trainings of the model except the newest and those in ``keep``.

    Unfinished ones stay.
    """
    files = (environment.storage / "trainings").glob(f"{name}-*/{FINISHED}")
    for file in sorted(files, key=lambda file: file.stat().st_mtime)[:-KEEP_FINISHED]:
        if file.parent not in keep:
            shutil.rmtree(file.parent, ignore_errors=True)
