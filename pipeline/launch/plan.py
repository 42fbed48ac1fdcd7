"""Choose the number of workers and their devices."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.environment import Environment
from pipeline.errors import BadInput
from pipeline.process import start_ray


@dataclass(frozen=True)
class Plan:
    """The resources of a training."""

    workers: int  # 0: train in this process
    gpus: bool  # one GPU for each worker, or for this process
    threads: int  # of each worker
    mode: str  # for people: "in process", "local workers" or "cluster <address>"

    @property
    def resources(self) -> dict[str, float]:
        """The Ray resources of each worker."""
        return {"GPU": 1} if self.gpus else {"CPU": self.threads}

    def scaling(self, elastic: bool) -> dict[str, Any]:
        """The arguments of Ray Train's ``ScalingConfig``.

        An ``elastic`` training continues with fewer workers when a machine is lost, and waits if there is
        room for none.
        """
        workers = (1, self.workers) if elastic else self.workers
        return {"num_workers": workers, "use_gpu": self.gpus, "resources_per_worker": self.resources}


def trains_in_process(environment: Environment) -> bool:
    """Whether a training runs in the stage's own process, without Ray workers."""
    return environment.workers == "auto" and not environment.ray_address and _local_gpus(environment) < 2


@contextmanager
def plan_resources(environment: Environment) -> Iterator[Plan]:
    """The plan for ``environment``. If it needs Ray, Ray is started, and shut down at the end of the block.

    ``DARKROOM_WORKERS=auto`` means one worker for each device of a cluster, one for each of several local
    GPUs, or else training in this process. Raises ``BadInput`` if there are not enough resources,
    ``DarkroomError`` if the cluster cannot be reached.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = _local_gpus(environment)
    if environment.device == "cuda" and not gpus and not environment.ray_address:
        remedy = "use DARKROOM_DEVICE=auto or cpu"
        raise BadInput("no CUDA device is available", where="DARKROOM_DEVICE", remedy=remedy)
    if trains_in_process(environment):
        yield Plan(0, gpus == 1, min(environment.threads or cores, cores), "in process")
        return
    import ray

    try:
        yield _plan(environment, _start_ray(environment, cores))
    finally:
        ray.shutdown()


def _plan(environment: Environment, nodes: list[dict[str, float]]) -> Plan:
    """``nodes``: the resources of each machine."""
    gpus = 0 if environment.device == "cpu" else int(sum(node.get("GPU", 0) for node in nodes))
    cpus = [int(node.get("CPU", 0)) for node in nodes if node.get("CPU", 0) >= 1]
    workers = environment.workers if environment.workers != "auto" else gpus or max(1, len(cpus))
    if workers > (gpus or sum(cpus)):
        place = "cluster" if environment.ray_address else "machine"
        available = f"{gpus} GPUs" if gpus else f"{sum(cpus)} CPUs"
        what = f"{workers} workers were requested, but the {place} has {available}"
        remedy = f"use at most {gpus or sum(cpus)} workers, or add nodes"
        raise BadInput(what, where="DARKROOM_WORKERS", remedy=remedy)
    max_threads = max(
        (
            threads
            for threads in range(1, max(cpus, default=1) + 1)
            if sum(count // threads for count in cpus) >= workers
        ),
        default=1,
    )
    threads = min(environment.threads or max_threads, max_threads)
    mode = f"cluster {environment.ray_address}" if environment.ray_address else "local workers"
    return Plan(workers, gpus > 0, threads, mode)


def _start_ray(environment: Environment, cores: int) -> list[dict[str, float]]:
    import ray

    start_ray(environment.ray_address, cores)
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _local_gpus(environment: Environment) -> int:
    return 0 if environment.device == "cpu" else torch.cuda.device_count()
