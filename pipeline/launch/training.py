"""One training: started, resumed, or found finished, and its result written to models/ and history/."""

import importlib.metadata
import json
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import pipeline
from pipeline.core.dataset import Dataset
from pipeline.core.model_files import WEIGHTS
from pipeline.core.settings import TrainingSettings
from pipeline.environment import Environment
from pipeline.errors import EXIT_BUSY, BadInput, DarkroomError
from pipeline.files import atomic_folder, digest_of, digest_of_tree, read_json, sha256, write_json
from pipeline.launch.plan import planned
from pipeline.launch.ray_train import fit, mirrored
from pipeline.launch.storage import Mirror
from pipeline.launch.worker import FINISHED

CODE = "core"  # with the model's own file, all code that the bits of a model depend on
POLL_SECONDS = 2.0
KEEP_FINISHED = 3

Listener = Callable[[Path], None]


@dataclass(frozen=True)
class Training:
    """One training, as its result depends on it. ``fingerprint`` names params, code, data, seed and PyTorch, nothing else."""

    name: str
    settings: TrainingSettings
    config: Any
    data: Dataset
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        root = Path(pipeline.__file__).parent
        parts = {
            "name": self.name,
            "settings": json.loads(self.settings.model_dump_json()),
            "config": json.loads(self.config.model_dump_json()),
            "data": self.data.digest,
            "code": digest_of_tree([root / part for part in (CODE, f"models/{self.name}.py")], root),
            "torch": importlib.metadata.version("torch"),
        }
        object.__setattr__(self, "fingerprint", digest_of(parts))

    def folder(self, storage: Path) -> Path:
        """Where its checkpoints, record and result lie until they are handed on."""
        return storage / "trainings" / f"{self.name}-{self.fingerprint[:16]}"


@dataclass(frozen=True)
class Outcome:
    """What a training left: its own folder (with ``model/``), and where the time went (seconds)."""

    folder: Path
    times: dict[str, Any]


def train(
    training: Training, environment: Environment, model: Path, history: Path, listeners: list[Listener]
) -> Outcome:
    """Run ``training`` to its end and write ``model`` (the trained model) and ``history`` (metrics, samples, times), whole.

    To be called within ``alone``. While it runs each listener is called every two seconds with the training's folder. Raises
    ``DarkroomError`` when the cluster is too small or when the training fails for good.
    """
    began = time.time()
    folder = training.folder(environment.storage)
    mirror = mirrored(environment, folder)
    if mirror and not _is_finished(folder):
        mirror.pull()  # what another machine left
    if _is_finished(folder):
        print(
            f"{training.name}: this very training is finished already; handing it on (to train anew, delete {folder})",
            flush=True,
        )
    else:
        with planned(environment) as plan:
            if plan.workers > training.settings.batch_size:
                said = f"{plan.workers} workers cannot share a batch of {training.settings.batch_size}"
                remedy = f"ask for at most {training.settings.batch_size}, or raise batch_size"
                raise BadInput(said, where="DARKROOM_WORKERS", remedy=remedy)
            with _following(folder, listeners, mirror):
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
    # a process that was killed before it could tell, or one elsewhere, leaves the worker's times alone
    times = {"mode": "handed on", "total": time.time() - began, **read_json(folder / FINISHED)["times"]}
    _hand_on(folder, model, history, times)
    return Outcome(folder, times)


def _is_finished(folder: Path) -> bool:
    """Whether the training's result lies there, whole. A damaged one is forgotten: the last checkpoint makes it again."""
    try:
        if read_json(folder / FINISHED)["sha256"] == sha256(folder / "model" / WEIGHTS):
            return True
    except (OSError, ValueError, KeyError, TypeError):
        pass
    (folder / FINISHED).unlink(missing_ok=True)
    return False


@contextmanager
def alone(training: Training, environment: Environment) -> Iterator[None]:
    """Hold ``training`` for this process. Raises ``DarkroomError`` with exit code 75 where another process runs it."""
    folder = training.folder(environment.storage)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        error = DarkroomError(
            "another process runs this very training", where=str(folder), remedy="wait for it, or end it"
        )
        error.exit_code = EXIT_BUSY
        raise error from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _following(folder: Path, listeners: list[Listener], mirror: Mirror | None) -> Iterator[None]:
    """Call the listeners with ``folder`` every two seconds from a thread, and once more at the end; it is brought up to date before."""
    stop = threading.Event()

    def follow() -> None:
        while not stop.wait(POLL_SECONDS):
            if mirror:
                with suppress(DarkroomError):  # the last pull says what is wrong
                    mirror.pull("metrics.jsonl", "samples/")
            for listener in listeners:
                listener(folder)

    thread = threading.Thread(target=follow, name="follow", daemon=True)
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


def _hand_on(folder: Path, model: Path, history: Path, times: dict[str, Any]) -> None:
    with atomic_folder(model) as beside:
        shutil.copytree(folder / "model", beside, dirs_exist_ok=True)
    with atomic_folder(history) as beside:
        for name in ("metrics.jsonl", "system.jsonl", "run.json"):  # the last two are tracking's
            if (folder / name).is_file():
                shutil.copy(folder / name, beside)
        if (folder / "samples").is_dir():
            shutil.copytree(folder / "samples", beside / "samples", ignore=shutil.ignore_patterns(".*"))
        write_json(beside / "times.json", times)


def forget_older(environment: Environment, name: str, besides: Collection[Path]) -> None:
    """Keep the newest finished trainings of this model, those ``besides``, and unfinished ones, to be gone on with."""
    finished = sorted(
        (environment.storage / "trainings").glob(f"{name}-*/{FINISHED}"),
        key=lambda file: file.stat().st_mtime,
    )
    for file in finished[:-KEEP_FINISHED]:
        if file.parent not in besides:
            shutil.rmtree(file.parent, ignore_errors=True)
