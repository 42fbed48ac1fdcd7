"""What runs in a Ray Train worker: the loop, given its place among the workers. The same code in every mode."""

import getpass
import json
import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn

from pipeline import environment
from pipeline.core import model_files
from pipeline.core.dataset import Dataset
from pipeline.core.determinism import make_deterministic
from pipeline.core.distributed import DDP_ARGUMENTS, DistributedContext
from pipeline.core.loop import Loop
from pipeline.core.metrics_log import Diverged
from pipeline.core.settings import TrainingSettings
from pipeline.core.task import DataSpec
from pipeline.errors import BadInput, DarkroomError
from pipeline.files import atomic_folder, digest_of, read_json, write_json
from pipeline.launch.storage import Mirror
from pipeline.process import keep_freed_memory

FINISHED = "finished.json"
COPY_SECONDS = 1800


def train_worker(job: dict[str, Any]) -> dict[str, Any]:
    """Train as one of Ray Train's workers; worker 0 leaves ``model/`` and finished.json in the job's folder.

    A refusal of ours is returned by a single worker, not raised: Ray would repeat it three times.
    """
    import ray.train
    import ray.train.collective
    import ray.train.torch
    import ray.train.v2._internal.execution.context as ray_context

    environment.prepare_device()
    logging.getLogger(ray_context.__file__).setLevel(logging.WARNING)  # names each report otherwise
    entered = time.time()
    make_deterministic(job["threads"])
    keep_freed_memory()
    worker = ray.train.get_context()
    rank, size = worker.get_world_rank(), worker.get_world_size()
    context = DistributedContext(rank, size, _device(job["device"]), _wrap, job["microbatch"])

    def report(metrics: dict[str, float]) -> None:
        ray.train.report(metrics)

    try:
        data = _data(job)
        with _stored(job, context) as folder:
            loop = _loop(job, data, folder, context, report)
            built = time.time()
            model = loop.run()
            trained = time.time()
            if context.rank == 0:
                card = model_files.write(model, folder / "model", job["card"])
                times: dict[str, Any] = {
                    "build": built - entered,
                    "loop": trained - built,
                    "write": time.time() - trained,
                    **loop.seconds,
                }
                times["images_per_second"] = (
                    loop.num_taken * loop.settings.batch_size / max(1e-9, trained - built)
                )
                times |= {
                    "workers": context.size,
                    "device": str(context.device),
                }  # those that ended it: a cluster may have lost some
                write_json(folder / FINISHED, {"sha256": card["sha256"], "times": times})
    except (DarkroomError, torch.OutOfMemoryError) as failure:
        error = failure if isinstance(failure, DarkroomError) else _too_large(job, context)
        if context.size > 1 and not isinstance(
            error, Diverged
        ):  # the others wait for this one: let Ray end them
            raise error from failure
        return {
            "refusal": {
                "what": error.what,
                "where": error.where,
                "remedy": error.remedy,
                "bad_input": error.exit_code == 2,
            }
        }
    if context.size > 1:
        ray.train.collective.barrier()
    return {"entered": entered, "left": time.time()}


def _too_large(job: dict[str, Any], context: DistributedContext) -> BadInput:
    start, stop = context.rows(json.loads(job["settings"])["batch_size"])
    rows = min(context.microbatch or stop - start, stop - start)
    remedy = f"DARKROOM_MICROBATCH={max(1, rows // 2)} sums the gradients of smaller pieces of the same batch"
    return BadInput(
        f"{rows} examples at once are too many for the memory of {context.device}",
        where=f"train-{job['name']}",
        remedy=remedy,
    )


def _loop(job: dict[str, Any], data: Dataset, folder: Path, context: DistributedContext, report: Any) -> Loop:
    settings = TrainingSettings.model_validate_json(job["settings"])
    spec = DataSpec(channels=data.channels, size=data.size, classes=len(data.class_names))
    task = model_files.build(job["name"], json.loads(job["config"]), spec, settings.seed)
    return Loop(task, data, settings, folder, context, report)


def _data(job: dict[str, Any]) -> Dataset:
    """The processed data: the driver's folder where this machine sees it, else a copy of what was sent, once for each machine."""
    folder = Path(job["data"])
    if not ("sent" in job or "stored" in job) or _digest(folder) == job["digest"]:
        return Dataset.open(folder)
    folder = _scratch() / "data" / job["digest"]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock", timeout=COPY_SECONDS):
        if _digest(folder) != job["digest"]:
            with atomic_folder(folder) as beside:
                if "stored" in job:
                    Mirror(beside, job["stored"]).pull()
                else:
                    _unpack(job["sent"], beside)
    return Dataset.open(folder)


def _unpack(sent: dict[str, Any], folder: Path) -> None:
    import ray

    for name, data in sent.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(ray.get(data, timeout=COPY_SECONDS))


def _digest(folder: Path) -> str:
    try:
        return digest_of(read_json(folder / "manifest.json"))
    except (OSError, ValueError):
        return ""


@contextmanager
def _stored(job: dict[str, Any], context: DistributedContext) -> Iterator[Path]:
    """The training's folder: the one that all machines see, or worker 0's own, kept alike with the storage address."""
    if "storage" not in job:
        yield Path(job["folder"])
        return
    with tempfile.TemporaryDirectory(dir=_scratch()) as own:
        if context.rank:
            yield Path(own)
            return
        mirror = Mirror(Path(own), job["storage"])
        mirror.pull("checkpoints/", "metrics.jsonl", "samples/")
        with mirror.pushing():
            yield Path(own)


def _scratch() -> Path:
    """This machine's own folder for what can be brought again."""
    folder = Path(tempfile.gettempdir()) / f"darkroom-{getpass.getuser()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _wrap(module: nn.Module) -> nn.Module:
    import ray.train
    import ray.train.torch

    if ray.train.get_context().get_world_size() == 1:
        return module
    return ray.train.torch.prepare_model(module, move_to_device=False, parallel_strategy_kwargs=DDP_ARGUMENTS)


def _device(asked: str) -> torch.device:
    import ray.train.torch

    return torch.device("cpu") if asked == "cpu" else ray.train.torch.get_device()
