"""How many workers train a model, and on which devices."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.environment import Environment
from pipeline.errors import BadInput, DarkroomError


@dataclass(frozen=True)
class Plan:
    """The resources of a training: its number of workers and what each of them uses."""

    workers: int  # 0: in this process
    gpus: bool  # one for each worker, or for this process
    threads: int  # of each worker
    mode: str

    @property
    def resources(self) -> dict[str, float]:
        """What Ray reserves for each worker."""
        return {"GPU": 1} if self.gpus else {"CPU": self.threads}

    def scaling(self, elastic: bool) -> dict[str, Any]:
        """The arguments of Ray Train's ``ScalingConfig``.

        An ``elastic`` training goes on with fewer workers when a machine is lost, and waits where no worker fits.
        """
        workers = (1, self.workers) if elastic else self.workers
        return {"num_workers": workers, "use_gpu": self.gpus, "resources_per_worker": self.resources}


def trains_in_process(environment: Environment) -> bool:
    """Whether a training runs in the stage's own process, without Ray workers."""
    return environment.workers == "auto" and not environment.ray_address and _local_gpus(environment) < 2


@contextmanager
def planned(environment: Environment) -> Iterator[Plan]:
    """The plan for ``environment``; where it needs Ray, Ray runs until the end of the block.

    ``DARKROOM_WORKERS=auto`` means one worker for each device of a cluster or for each of several local GPUs, else this process.
    Raises ``BadInput`` if more is asked for than there is, ``DarkroomError`` if no cluster answers.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = _local_gpus(environment)
    if environment.device == "cuda" and not gpus and not environment.ray_address:
        raise BadInput(
            "no CUDA device is seen here", where="DARKROOM_DEVICE", remedy="use DARKROOM_DEVICE=auto or cpu"
        )
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
        where = "cluster" if environment.ray_address else "machine"
        there = f"{gpus} GPUs" if gpus else f"{sum(cpus)} CPUs"
        remedy = f"ask for at most {gpus or sum(cpus)}, or add nodes"
        raise BadInput(
            f"{workers} workers were asked for, the {where} has {there}",
            where="DARKROOM_WORKERS",
            remedy=remedy,
        )
    fitting = [
        threads
        for threads in range(1, max(cpus, default=1) + 1)
        if sum(count // threads for count in cpus) >= workers
    ]
    threads = min(environment.threads or max(fitting, default=1), max(fitting, default=1))
    return Plan(
        workers,
        gpus > 0,
        threads,
        f"cluster {environment.ray_address}" if environment.ray_address else "local workers",
    )


def _start_ray(environment: Environment, cores: int) -> list[dict[str, float]]:
    import ray

    if not ray.is_initialized():
        local: dict[str, Any] = (
            {} if environment.ray_address else {"num_cpus": cores, "include_dashboard": False}
        )
        address = (
            environment.ray_address or "local"
        )  # never None, which joins any cluster found on this machine
        try:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **local)
        except (ConnectionError, RuntimeError, ValueError) as error:
            remedy = "check the address, the token (RAY_AUTH_TOKEN) and that Ray's versions are equal"
            raise DarkroomError(
                f"no Ray cluster answers: {str(error).splitlines()[0]}", where=address, remedy=remedy
            ) from error
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _local_gpus(environment: Environment) -> int:
    return 0 if environment.device == "cpu" else torch.cuda.device_count()
