"""What runs in a Ray Train worker: the loop, given its place among the workers. The same code in every mode."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.data.dataset import Dataset
from pipeline.errors import DarkroomError
from pipeline.files import write_json
from pipeline.models import store
from pipeline.models.task import DataSpec
from pipeline.training.loop import Loop
from pipeline.training.settings import TrainingSettings
from pipeline.training.step import World

FINISHED = "finished.json"


def train_worker(job: dict[str, Any]) -> dict[str, Any]:
    """Train as one of Ray Train's workers; worker 0 leaves ``model/`` and finished.json in the job's folder.

    A refusal of ours is returned by a single worker, not raised: Ray would repeat it three times.
    """
    import ray.train
    import ray.train.collective
    import ray.train.torch
    import ray.train.v2._internal.execution.context as ray_context

    logging.getLogger(ray_context.__file__).setLevel(logging.WARNING)  # names each report otherwise
    entered = time.time()
    context = ray.train.get_context()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # we read none; filling takes time
    torch.set_num_threads(job["threads"])
    world = World(context.get_world_rank(), context.get_world_size(), _device(job["device"]), _wrap)

    def report(metrics: dict[str, float]) -> None:
        ray.train.report(metrics)

    try:
        loop = _loop(job, world, report)
        built = time.time()
        model = loop.run()
    except DarkroomError as error:
        if world.size > 1:  # the others wait for this one: let Ray end them
            raise
        return {"refusal": {"what": error.what, "where": error.where, "remedy": error.remedy, "bad_input": error.exit_code == 2}}
    trained = time.time()
    if world.rank == 0:
        folder = Path(job["folder"])
        card = store.write(model, folder / "model", job["card"])
        times = {"build": built - entered, "loop": trained - built, "write": time.time() - trained, **loop.seconds}
        write_json(folder / FINISHED, {"sha256": card["sha256"], "times": times, "device": str(world.device)})
    if world.size > 1:
        ray.train.collective.barrier()
    return {"entered": entered, "left": time.time()}


def _loop(job: dict[str, Any], world: World, report: Any) -> Loop:
    data = Dataset.open(Path(job["data"]))
    settings = TrainingSettings.model_validate_json(job["settings"])
    spec = DataSpec(channels=data.channels, size=data.size, classes=len(data.class_names))
    task = store.build(job["name"], json.loads(job["config"]), spec, settings.seed)
    return Loop(task, data, settings, Path(job["folder"]), world, report)


def _wrap(module: nn.Module) -> nn.Module:
    import ray.train
    import ray.train.torch

    if ray.train.get_context().get_world_size() == 1:
        return module
    return ray.train.torch.prepare_model(module, move_to_device=False, parallel_strategy_kwargs={"forward_sync_buffers": False})


def _device(asked: str) -> torch.device:
    import ray.train.torch

    return torch.device("cpu") if asked == "cpu" else ray.train.torch.get_device()
