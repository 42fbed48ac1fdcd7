"""The function that each Ray Train worker runs. It is the same in every mode."""

import getpass
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import torch
from filelock import FileLock
from torch import nn

from pipeline import environment
from pipeline.core import initial_weights, model_files
from pipeline.core.dataset import Dataset
from pipeline.core.determinism import make_deterministic
from pipeline.core.distributed import DDP_ARGUMENTS, DistributedContext
from pipeline.core.loop import Loop
from pipeline.core.metrics_log import MetricsLog
from pipeline.core.settings import TrainingSettings
from pipeline.divergence import Diverged
from pipeline.errors import BadInput, DarkroomError, TrainingStopped
from pipeline.files import atomic_folder, digest_of, read_json, write_json
from pipeline.launch.storage import Mirror
from pipeline.limits import memory_limit
from pipeline.openmp import short_waits_if_busy
from pipeline.process import keep_freed_memory

FINISHED = "finished.json"
STOP = "stop"  # a file in the training's folder: a listener asks to end the training
CONTINUE = "the same command continues from the last checkpoint"
COPY_SECONDS = 1800
OUT_OF_MEMORY = ("DefaultCPUAllocator", "MPS backend out of memory")  # in PyTorch's RuntimeErrors
TRAINING_SPLITS = ("train", "validation")  # a training never opens the test split
UNUSED_SECONDS = 7 * 86_400  # after which the copy of a data set is removed


COMPILER = ("torch._dynamo", "torch._inductor")  # the modules that define its errors
KINDS = {"stopped": TrainingStopped, "bad input": BadInput, "diverged": Diverged, "error": DarkroomError}


def train_worker(job: dict[str, Any]) -> dict[str, Any]:
    """Train as one of Ray Train's workers. Rank 0 writes ``model/`` and finished.json into the job's folder.

    Returns ``entered`` and ``left`` (seconds since the epoch), or ``error``. Errors that a retry cannot fix
    are returned and not raised, because Ray would retry three times.
    """
    import ray.train
    import ray.train.collective
    import ray.train.torch
    import ray.train.v2._internal.execution.context as ray_context

    environment.prepare_device()
    logging.getLogger(ray_context.__file__).setLevel(logging.WARNING)  # at INFO it logs each report
    entered, processor = time.time(), time.process_time()
    make_deterministic(job["threads"])
    keep_freed_memory()
    worker = ray.train.get_context()
    rank, size = worker.get_world_rank(), worker.get_world_size()
    context = DistributedContext(rank, size, _device(job["device"]), _wrap, job["microbatch"])

    try:
        data = _open_data(job)
        with _training_folder(job, context) as folder:

            def report(metrics: dict[str, float]) -> None:
                ray.train.report(metrics)
                if context.broadcast(context.rank == 0 and _stop_requested(job, folder)):
                    raise TrainingStopped(
                        "the training was stopped", where=f"train-{job['name']}", remedy=CONTINUE
                    )

            loop = _build_loop(job, data, folder, context, report)
            built = time.time()
            with short_waits_if_busy():
                model = loop.run()
            trained = time.time()
            if context.rank == 0:
                card = model_files.write(model, folder / "model", job["card"])
                num_images = loop.num_steps_taken * loop.settings.batch_size
                times: dict[str, Any] = {
                    "build": built - entered,
                    "loop": trained - built,
                    "write": time.time() - trained,
                    **loop.seconds,
                    "processor": time.process_time() - processor,  # seconds of all cores, of one worker
                    "steps": loop.num_steps_taken,  # by this process; fewer if it resumed
                    "last_step": MetricsLog(folder / "metrics.jsonl").last_step,  # fewer if patience ended it
                    "images_per_second": num_images / max(1e-9, trained - built),
                    "workers": context.size,  # at the end: an elastic training may have lost some
                    "device": str(context.device),
                }
                write_json(folder / FINISHED, {"sha256": card["sha256"], "times": times})
    except (DarkroomError, RuntimeError, MemoryError) as failure:
        error = failure if isinstance(failure, DarkroomError) else _explained(failure, job, context)
        if error is None:
            raise
        # The other workers may wait for this one: raise, so that Ray stops them. All workers diverge, or are
        # stopped, at once.
        if context.size > 1 and not isinstance(error, Diverged | TrainingStopped):
            raise error from failure
        texts = {"what": error.what, "where": error.where, "remedy": error.remedy}
        return {"error": texts, "kind": next(kind for kind in KINDS if isinstance(error, KINDS[kind]))}
    if context.size > 1:
        ray.train.collective.barrier()
    return {"entered": entered, "left": time.time()}


def _stop_requested(job: dict[str, Any], folder: Path) -> bool:
    return Mirror(folder, job["storage"]).has(STOP) if "storage" in job else (folder / STOP).exists()


def _explained(error: Exception, job: dict[str, Any], context: DistributedContext) -> DarkroomError | None:
    """The error that names a remedy for PyTorch's ``error``; None for one that is not known."""
    where, text = f"train-{job['name']}", str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(part in text for part in OUT_OF_MEMORY):
        start, stop = context.rows(json.loads(job["settings"])["batch_size"])
        rows = min(context.microbatch or stop - start, stop - start)
        what = f"{rows} examples at once do not fit into the memory of {context.device}"
        if context.device.type == "cpu":
            what += f" ({memory_limit() / 2**30:.1f} GiB)"
        remedy = f"DARKROOM_MICROBATCH={max(1, rows // 2)} sums the gradients of smaller pieces of the batch"
        return BadInput(what, where=where, remedy=remedy)
    if isinstance(error, NotImplementedError) and job["device"] == "mps":
        remedy = "PYTORCH_ENABLE_MPS_FALLBACK=1 computes it on the CPU; or use DARKROOM_DEVICE=cpu"
        return BadInput(f"PyTorch has no such operator on mps: {text[:200]}", where=where, remedy=remedy)
    if "torch.compile" in text or type(error).__module__.startswith(COMPILER):
        what = f"the losses cannot be compiled ({' '.join(text.strip().splitlines()[:2])})"
        remedy = "install a C++ compiler (on a GPU: triton), or set it to false"
        if "double backward" in text:  # a gradient penalty
            remedy = "set it to false"
        return BadInput(what, where=f"params.yaml: {job['name']}.training.compile", remedy=remedy)
    return None


def _build_loop(
    job: dict[str, Any], data: Dataset, folder: Path, context: DistributedContext, report: Any
) -> Loop:
    settings = TrainingSettings.model_validate_json(job["settings"])
    needs = {
        name: model_files.restore(card, _fetch(weights)) for name, (card, weights) in job["needs"].items()
    }
    task = model_files.build(job["name"], json.loads(job["config"]), data.spec, settings.seed, needs)
    if settings.initial_weights:
        lines = initial_weights.apply(task, _fetch(job["initial_weights"]), settings.initial_weights)
        if context.rank == 0:
            print(*(f"{job['name']}: initial weights: {line}" for line in lines), sep="\n", flush=True)
    if "privacy_key" in job:
        private, key = cast(Any, task).private, _fetch(job["privacy_key"])
        multiplier = private.begin(settings, len(data.train), key)
        if context.rank == 0:
            print(f"{job['name']}: {private.settings}, noise multiplier {multiplier:.3g}", flush=True)
    return Loop(task, data, settings, folder, context, report)


def _fetch(value: Any) -> bytes:
    """The bytes of ``value``, which is a reference in Ray's object store if there are Ray workers."""
    if isinstance(value, bytes):
        return value
    import ray

    return ray.get(value, timeout=COPY_SECONDS)


def _open_data(job: dict[str, Any]) -> Dataset:
    """The processed data: in the driver's folder if it is visible here, else in a copy for this machine."""
    folder = Path(job["data"])
    if not ("data_refs" in job or "data_address" in job) or _digest(folder) == job["digest"]:
        return Dataset.open(folder, TRAINING_SPLITS)
    folder = _cache_folder() / "data" / job["digest"]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock", timeout=COPY_SECONDS):
        if (data := _open_copy(folder, job["digest"])) is None:
            _remove_unused(folder.parent, job["digest"])
            with atomic_folder(folder) as temporary:
                if "data_address" in job:
                    Mirror(temporary, job["data_address"]).pull()
                else:
                    _write_files(job["data_refs"], temporary)
    os.utime(folder)  # the time of its last use
    return data or Dataset.open(folder, TRAINING_SPLITS)


def _open_copy(folder: Path, digest: str) -> Dataset | None:
    """The data set in ``folder``; None if it is missing or damaged."""
    if _digest(folder) == digest:
        with suppress(BadInput):
            return Dataset.open(folder, TRAINING_SPLITS)
    return None


def _remove_unused(folder: Path, digest: str) -> None:
    """Remove copies, except ``digest``, that were not opened for ``UNUSED_SECONDS``, and their locks."""
    for path in folder.iterdir():
        with suppress(OSError):  # another process on this machine may remove them too
            age = time.time() - path.stat().st_mtime
            if age > UNUSED_SECONDS and not path.name.startswith(digest):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _write_files(refs: dict[str, Any], folder: Path) -> None:
    for name, ref in refs.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(_fetch(ref))


def _digest(folder: Path) -> str:
    try:
        return digest_of(read_json(folder / "manifest.json"))
    except (OSError, ValueError):
        return ""


@contextmanager
def _training_folder(job: dict[str, Any], context: DistributedContext) -> Iterator[Path]:
    """The training's folder: a shared one, or a temporary one that rank 0 synchronises with the storage."""
    if "storage" not in job:
        yield Path(job["folder"])
        return
    with tempfile.TemporaryDirectory(dir=_cache_folder()) as folder:
        if context.rank:
            yield Path(folder)
            return
        mirror = Mirror(Path(folder), job["storage"])
        mirror.pull("checkpoints/", "metrics.jsonl", "samples/")
        with mirror.push_periodically():
            yield Path(folder)


def _cache_folder() -> Path:
    """A folder on this machine for files that can be fetched again."""
    folder = Path(tempfile.gettempdir()) / f"darkroom-{getpass.getuser()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _wrap(module: nn.Module) -> nn.Module:
    import ray.train
    import ray.train.torch

    if ray.train.get_context().get_world_size() == 1:
        return module
    return ray.train.torch.prepare_model(module, move_to_device=False, parallel_strategy_kwargs=DDP_ARGUMENTS)


def _device(name: str) -> torch.device:
    import ray.train.torch

    return ray.train.torch.get_device() if name == "cuda" else torch.device(name)
