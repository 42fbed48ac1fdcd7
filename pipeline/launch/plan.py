"""Choose the number of workers and their devices."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.environment import Environment
from pipeline.errors import BadInput
from pipeline.limits import cpu_count
from pipeline.process import start_ray


@dataclass(frozen=True)
class Plan:
    """The resources of a training."""

    workers: int  # 0: train in this process
    device: str  # of each worker, or of this process: "cpu", "cuda" or "mps"
    threads: int  # of each worker
    mode: str  # for people: "in process", "local workers" or "cluster <address>"

    @property
    def resources(self) -> dict[str, float]:
        """The Ray resources of each worker."""
        return {"GPU": 1} if self.device == "cuda" else {"CPU": self.threads}

    def scaling(self, elastic: bool) -> dict[str, Any]:
        """The arguments of Ray Train's ``ScalingConfig``.

        An ``elastic`` training continues with fewer workers when a machine is lost, and waits if there is
        room for none.
        """
        workers = (1, self.workers) if elastic else self.workers
        use_gpu = self.device == "cuda"
        return {"num_workers": workers, "use_gpu": use_gpu, "resources_per_worker": self.resources}


def trains_in_process(environment: Environment) -> bool:
    """Whether a training runs in the stage's own process, without Ray workers."""
    return environment.workers == "auto" and not environment.ray_address and local_devices(environment)[1] < 2


def check_device(environment: Environment) -> None:
    """Raise ``BadInput`` if this machine has no such device, or if mps would need Ray workers."""
    if environment.device == "mps" and not trains_in_process(environment):
        remedy = "unset DARKROOM_WORKERS and RAY_ADDRESS, or use DARKROOM_DEVICE=cpu"
        raise BadInput("mps only trains in the stage's own process", where="DARKROOM_DEVICE", remedy=remedy)
    if not environment.ray_address and environment.device not in ("auto", local_devices(environment)[0]):
        raise _no_device(f"no {environment.device} device is available")


@contextmanager
def plan_resources(environment: Environment) -> Iterator[Plan]:
    """The plan for ``environment``. If it needs Ray, Ray is started, and shut down at the end of the block.

    ``DARKROOM_WORKERS=auto`` means one worker for each GPU or else each machine of a cluster, one for each of
    several local GPUs, or else training in this process. Raises ``BadInput`` if there are not enough
    resources, ``DarkroomError`` if the cluster cannot be reached.
    """
    check_device(environment)
    device, count = local_devices(environment)
    if trains_in_process(environment):
        yield Plan(0, device, min(environment.threads or cpu_count(), cpu_count()), "in process")
        return
    cpus, gpus = cpu_count(), count if device == "cuda" else 0
    if not environment.ray_address:
        _plan(environment, [{"CPU": cpus, "GPU": gpus}])  # refuses at once; Ray takes seconds to start
    import ray

    was_running = ray.is_initialized()
    try:
        start_ray(environment.ray_address, cpus, gpus)
        yield _plan(environment, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    finally:
        if not was_running:
            ray.shutdown()


def _plan(environment: Environment, nodes: list[dict[str, float]]) -> Plan:
    """``nodes``: the resources of each machine."""
    place = "cluster" if environment.ray_address else "machine"
    sizes = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes]
    cpus = [cores for cores, _ in sizes if cores]
    gpus = 0 if environment.device == "cpu" else sum(count for _, count in sizes)
    if environment.device == "cuda" and not gpus:
        raise _no_device(f"the {place} has no GPU")
    workers = environment.workers if environment.workers != "auto" else gpus or max(1, len(cpus))
    limit, kind = gpus or sum(cpus), "GPU" if gpus else "CPU"
    if workers > limit:
        wanted = f"{workers} workers were" if workers > 1 else "1 worker was"
        what = f"{wanted} requested, but the {place} has {limit} {kind}{'s' * (limit != 1)}"
        fewer = f"use at most {limit} worker{'s' * (limit > 1)}" + " or DARKROOM_DEVICE=cpu" * (gpus > 0)
        remedy = f"{fewer}, or add machines" if limit else "add machines with CPUs to the cluster"
        raise BadInput(what, where="DARKROOM_WORKERS", remedy=remedy)
    if gpus:  # Ray chooses the machines: any of them may get as many workers as it has GPUs
        max_threads = min(max(1, cores // min(count, workers)) for cores, count in sizes if count)
    else:
        possible = range(1, max(cpus) + 1)
        max_threads = max(n for n in possible if sum(cores // n for cores in cpus) >= workers)
    threads = min(environment.threads or max_threads, max_threads)
    mode = f"cluster {environment.ray_address}" if environment.ray_address else "local workers"
    return Plan(workers, "cuda" if gpus else "cpu", threads, mode)


def _no_device(what: str) -> BadInput:
    return BadInput(what, where="DARKROOM_DEVICE", remedy="use DARKROOM_DEVICE=auto or cpu")


def local_devices(environment: Environment) -> tuple[str, int]:
    """The kind and number of devices of this machine that a training may use."""
    if environment.device in ("auto", "cuda") and (gpus := torch.cuda.device_count()):
        return "cuda", gpus
    if environment.device in ("auto", "mps") and torch.backends.mps.is_available():
        return "mps", 1
    return "cpu", 1
