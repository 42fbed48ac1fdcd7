"""Starting a training under Ray Train: in this process, on local workers, or on a cluster; and bringing its results home."""

import importlib.metadata
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

import pipeline
from pipeline.data.dataset import Dataset
from pipeline.environment import Environment
from pipeline.errors import EXIT_BUSY, BadInput, DarkroomError
from pipeline.files import digest_of, digest_of_tree, read_json, sha256, whole_folder, write_json
from pipeline.models.store import WEIGHTS
from pipeline.training.loopback import meet_on_loopback
from pipeline.training.settings import TrainingSettings
from pipeline.training.worker import FINISHED, train_worker

CODE = (
    "data/dataset.py",
    "models/layers.py",
    "models/optimizers.py",
    "models/store.py",
    "models/task.py",
    "noise.py",
    "pictures.py",
    "training",
)
POLL_SECONDS = 2.0
WORKER_TIMEOUT_SECONDS = 300
MAX_FAILURES = 3
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
            "code": digest_of_tree([root / part for part in (*CODE, f"models/{self.name}.py")], root),
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


def train(training: Training, environment: Environment, model: Path, history: Path, listeners: list[Listener]) -> Outcome:
    """Run ``training`` to its end and write ``model`` (the trained model) and ``history`` (metrics, samples, times), whole.

    To be called within ``alone``. While it runs each listener is called every two seconds with the training's folder. Raises
    ``DarkroomError`` when the cluster is too small or when the training fails for good.
    """
    began = time.time()
    folder = training.folder(environment.storage)
    done = _is_finished(folder)
    plan = _plan(environment)
    if plan.workers > training.settings.batch_size:
        remedy = f"ask for at most {training.settings.batch_size}, or raise batch_size"
        raise BadInput(
            f"{plan.workers} workers cannot share a batch of {training.settings.batch_size}", where="DARKROOM_WORKERS", remedy=remedy
        )
    if done:
        print(f"{training.name}: this very training is finished already; handing it on (to train anew, delete {folder})", flush=True)
    else:
        with _following(folder, listeners):
            marks = _fit(training, environment, plan, folder)
    finished = read_json(folder / FINISHED)
    told = {"workers": max(1, plan.workers), "threads": plan.threads, "mode": plan.mode, "device": finished["device"]}
    # a process that was killed before it could tell leaves the worker's times alone
    times = told | {"total": time.time() - began} | finished["times"]
    if not done:
        times |= {"start": marks["entered"] - began, "shutdown": time.time() - marks["left"]}
        times["images_per_second"] = training.settings.num_steps * training.settings.batch_size / max(1e-9, times["loop"])
        write_json(folder / FINISHED, {**finished, "times": times})
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


@dataclass(frozen=True)
class _Plan:
    workers: int  # 0: in this process
    gpus: bool
    threads: int
    mode: str


def _plan(environment: Environment) -> _Plan:
    """How many workers, of what: ``auto`` takes a cluster's devices, several local GPUs, or this process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = 0 if environment.device == "cpu" else torch.cuda.device_count()
    if environment.device == "cuda" and not gpus and not environment.ray_address:
        raise BadInput("no CUDA device is seen here", where="DARKROOM_DEVICE", remedy="use DARKROOM_DEVICE=auto or cpu")
    if environment.workers == "auto" and not environment.ray_address and gpus < 2:
        return _Plan(0, gpus == 1, cores, "in process")
    resources = _start_ray(environment, cores)
    gpus, cpus = (0 if environment.device == "cpu" else int(resources.get("GPU", 0))), int(resources.get("CPU", 0))
    if environment.workers == "auto":
        workers = gpus or max(1, sum(1 for key in resources if key.startswith("node:") and key != "node:__internal_head__"))
    else:
        workers = environment.workers
    if workers > (gpus or cpus):
        raise BadInput(
            f"{workers} workers were asked for, the {'cluster' if environment.ray_address else 'machine'} has {gpus or cpus} "
            f"{'GPUs' if gpus else 'CPUs'}",
            where="DARKROOM_WORKERS",
            remedy=f"ask for at most {gpus or cpus}, or add nodes",
        )
    return _Plan(
        workers, gpus > 0, max(1, cpus // workers), f"cluster {environment.ray_address}" if environment.ray_address else "local workers"
    )


def _start_ray(environment: Environment, cores: int) -> dict[str, float]:
    import ray

    if not ray.is_initialized():
        local: dict[str, Any] = {} if environment.ray_address else {"num_cpus": cores, "include_dashboard": False}
        address = environment.ray_address or "local"  # never None, which joins any cluster found on this machine
        try:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **local)
        except (ConnectionError, RuntimeError, ValueError) as error:
            remedy = "check the address, the token (RAY_AUTH_TOKEN) and that Ray's versions are equal"
            raise DarkroomError(f"no Ray cluster answers: {str(error).splitlines()[0]}", where=address, remedy=remedy) from error
    return ray.cluster_resources()


def _fit(training: Training, environment: Environment, plan: _Plan, folder: Path) -> dict[str, float]:
    """Run the workers; return when worker 0 entered and left the loop (seconds since the epoch)."""
    import ray
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.torch.config import _TorchBackend

    class LoopbackBackend(_TorchBackend):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(meet_on_loopback)
            super().on_start(worker_group, backend_config)

    class LoopbackConfig(TorchConfig):
        backend_cls = LoopbackBackend

    logging.getLogger("ray.train").setLevel(logging.WARNING)  # in process it would name each report
    job = {
        "name": training.name,
        "settings": training.settings.model_dump_json(),
        "config": training.config.model_dump_json(),
        "data": str(training.data.folder.resolve()),
        "folder": str(folder),
        "threads": plan.threads,
        "device": "auto" if plan.gpus else "cpu",
        "card": {
            "fingerprint": training.fingerprint,
            "data": training.data.digest,
            "source": training.data.source,
            "images": len(training.data.train),
            "class_names": list(training.data.class_names),
            "training": json.loads(training.settings.model_dump_json()),
        },
    }
    resources = {"GPU": 1} if plan.gpus else {"CPU": plan.threads}
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=job,
        torch_config=(TorchConfig if environment.ray_address else LoopbackConfig)(timeout_s=WORKER_TIMEOUT_SECONDS),
        scaling_config=ScalingConfig(num_workers=plan.workers, use_gpu=plan.gpus and plan.workers > 0, resources_per_worker=resources),
        run_config=RunConfig(
            name=f"{folder.name}-{time.time_ns()}",  # a fresh name: going on from a checkpoint is our store's affair
            storage_path=str(folder / "ray"),
            failure_config=FailureConfig(max_failures=MAX_FAILURES, controller_failure_limit=MAX_FAILURES),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    if plan.workers and not environment.ray_address:
        _quieten(trainer)
    try:
        result = trainer.fit()
    except Exception as error:
        raise _explained(error, training.name) from error
    finally:
        if ray.is_initialized():
            ray.shutdown()
        shutil.rmtree(folder / "ray", ignore_errors=True)
    answer = result.return_value
    if refusal := (answer or {}).get("refusal"):
        kind = BadInput if refusal.pop("bad_input") else DarkroomError
        raise kind(**refusal)
    return answer


def _quieten(trainer: Any) -> None:
    """On one machine drop the callback that asks the absent dashboard once a second, and warns as often."""
    default = trainer._create_default_callbacks
    trainer._create_default_callbacks = lambda: [one for one in default() if type(one).__name__ != "PlacementGroupCleanerCallback"]


def _explained(error: Exception, name: str) -> Exception:
    failures = getattr(error, "worker_failures", None)
    cause = next(iter(failures.values())) if failures else error
    if isinstance(cause, DarkroomError):
        return cause
    first = (str(cause).strip().splitlines() or [type(cause).__name__])[-1]
    remedy = "the same command goes on from the last checkpoint; DARKROOM_DEBUG=1 shows the traceback"
    return DarkroomError(f"the training failed: {type(cause).__name__}: {first}"[:400], where=f"train-{name}", remedy=remedy)


@contextmanager
def alone(training: Training, environment: Environment) -> Iterator[None]:
    """Hold ``training`` for this process. Raises ``DarkroomError`` with exit code 75 where another process runs it."""
    folder = training.folder(environment.storage)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        error = DarkroomError("another process runs this very training", where=str(folder), remedy="wait for it, or end it")
        error.exit_code = EXIT_BUSY
        raise error from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _following(folder: Path, listeners: list[Listener]) -> Iterator[None]:
    """Call the listeners with ``folder`` every two seconds from a thread, and once more at the end."""
    stop = threading.Event()

    def follow() -> None:
        while not stop.wait(POLL_SECONDS):
            for listener in listeners:
                listener(folder)

    thread = threading.Thread(target=follow, name="follow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=30)
        for listener in listeners:
            listener(folder)


def _hand_on(folder: Path, model: Path, history: Path, times: dict[str, Any]) -> None:
    with whole_folder(model) as beside:
        shutil.copytree(folder / "model", beside, dirs_exist_ok=True)
    with whole_folder(history) as beside:
        for name in ("metrics.jsonl", "system.jsonl", "run.json"):  # the last two are tracking's
            if (folder / name).is_file():
                shutil.copy(folder / name, beside)
        if (folder / "samples").is_dir():
            shutil.copytree(folder / "samples", beside / "samples", ignore=shutil.ignore_patterns(".*"))
        write_json(beside / "times.json", times)


def forget_older(environment: Environment, name: str, besides: Collection[Path]) -> None:
    """Keep the newest finished trainings of this model, those ``besides``, and unfinished ones, to be gone on with."""
    finished = sorted((environment.storage / "trainings").glob(f"{name}-*/{FINISHED}"), key=lambda file: file.stat().st_mtime)
    for file in finished[:-KEEP_FINISHED]:
        if file.parent not in besides:
            shutil.rmtree(file.parent, ignore_errors=True)
