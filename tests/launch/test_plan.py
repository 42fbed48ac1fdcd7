"""The plan of a training for each device, number of workers and cluster, without a GPU."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import ray
import torch
from ray.train import ScalingConfig

from pipeline.environment import Environment
from pipeline.errors import BadInput
from pipeline.launch import plan as plan_module
from pipeline.launch.plan import Plan, plan_resources, trains_in_process

CORES = 8
HEAD = "head:26379"
# What each DARKROOM_WORKERS gives on a machine with 8 cores: the number of workers (0: in process) and the
# threads of each, or the error.
NO_GPU, NO_MPS = "no cuda device is available", "no mps device is available"
ONLY_IN_PROCESS = "mps only trains in the stage's own process"
TOO_MANY_CPUS = "9 workers were requested, but the machine has 8 CPUs"
ON_CPUS = {"auto": (0, 8), 1: (1, 8), 2: (2, 4), 9: TOO_MANY_CPUS}
ONE_GPU = {
    "auto": (0, 8),
    1: (1, 8),
    2: "2 workers were requested, but the machine has 1 GPU",
    9: "9 workers were requested, but the machine has 1 GPU",
}
TWO_GPUS = {
    "auto": (2, 4),
    1: (1, 8),
    2: (2, 4),
    9: "9 workers were requested, but the machine has 2 GPUs",
}
EIGHT_GPUS = {
    "auto": (8, 1),
    1: (1, 8),
    2: (2, 4),
    9: "9 workers were requested, but the machine has 8 GPUs",
}
BY_GPUS = {0: ON_CPUS, 1: ONE_GPU, 2: TWO_GPUS, 8: EIGHT_GPUS}
# (DARKROOM_DEVICE, GPUs, whether there is mps) -> the device, and the row for it.
MACHINES = {
    **{("cpu", gpus, mps): ("cpu", ON_CPUS) for gpus in BY_GPUS for mps in (False, True)},
    **{("cuda", gpus, False): ("cuda", BY_GPUS[gpus]) for gpus in (1, 2, 8)},
    ("cuda", 0, False): ("", dict.fromkeys(ON_CPUS, NO_GPU)),
    ("cuda", 0, True): ("", dict.fromkeys(ON_CPUS, NO_GPU)),
    **{("auto", gpus, False): ("cuda", BY_GPUS[gpus]) for gpus in (1, 2, 8)},
    ("auto", 0, False): ("cpu", ON_CPUS),
    ("auto", 0, True): ("mps or cpu", ON_CPUS),  # mps in process, the CPUs for workers
    ("mps", 0, True): ("mps", {"auto": (0, 8), **dict.fromkeys((1, 2, 9), ONLY_IN_PROCESS)}),
    ("mps", 0, False): ("", {"auto": NO_MPS, **dict.fromkeys((1, 2, 9), ONLY_IN_PROCESS)}),
    ("mps", 2, False): ("", {"auto": NO_MPS, **dict.fromkeys((1, 2, 9), ONLY_IN_PROCESS)}),
}
# (CPUs, GPUs) of each machine of a cluster.
EQUAL, UNEQUAL = [(4, 0), (4, 0)], [(2, 0), (16, 0)]
WITH_GPUS, MIXED = [(8, 4), (8, 4)], [(64, 0), (8, 2), (4, 1)]
HEAD_WITHOUT_CPUS, GPUS_ALONE = [(0, 0), (4, 0), (4, 0)], [(0, 2)]
NO_CLUSTER_GPU = "the cluster has no GPU"
CLUSTERS = [
    (EQUAL, "auto", "auto", ("cpu", 2, 4)),
    (EQUAL, "auto", 1, ("cpu", 1, 4)),
    (EQUAL, "auto", 2, ("cpu", 2, 4)),
    (EQUAL, "cpu", 8, ("cpu", 8, 1)),
    (EQUAL, "auto", 9, "9 workers were requested, but the cluster has 8 CPUs"),
    *((EQUAL, "cuda", workers, NO_CLUSTER_GPU) for workers in ("auto", 1, 2, 9)),
    (UNEQUAL, "auto", "auto", ("cpu", 2, 8)),  # both on the larger machine: 16 cores are used, not 4
    (UNEQUAL, "auto", 1, ("cpu", 1, 16)),
    (UNEQUAL, "auto", 9, ("cpu", 9, 2)),  # 1 on the smaller machine, 8 on the larger one
    (WITH_GPUS, "auto", "auto", ("cuda", 8, 2)),
    (WITH_GPUS, "cuda", 1, ("cuda", 1, 8)),
    (WITH_GPUS, "cuda", 2, ("cuda", 2, 4)),  # Ray may start both on one machine
    (WITH_GPUS, "auto", 9, "9 workers were requested, but the cluster has 8 GPUs"),
    (WITH_GPUS, "cpu", 9, ("cpu", 9, 1)),
    (MIXED, "auto", "auto", ("cuda", 3, 4)),  # the machine without a GPU has no worker
    (MIXED, "cuda", "auto", ("cuda", 3, 4)),
    (MIXED, "cuda", 1, ("cuda", 1, 4)),
    (MIXED, "auto", 9, "9 workers were requested, but the cluster has 3 GPUs"),
    (MIXED, "cpu", "auto", ("cpu", 3, 21)),
    (HEAD_WITHOUT_CPUS, "auto", "auto", ("cpu", 2, 4)),
    (GPUS_ALONE, "auto", "auto", ("cuda", 2, 1)),
    (GPUS_ALONE, "cpu", "auto", "1 worker was requested, but the cluster has 0 CPUs"),
    ([], "auto", "auto", "1 worker was requested, but the cluster has 0 CPUs"),
    *((WITH_GPUS, "mps", workers, ONLY_IN_PROCESS) for workers in ("auto", 1, 2, 9)),
]


@pytest.fixture
def machine(monkeypatch):
    """A machine with 8 cores, GPUs and mps, or a cluster; the starts of a local Ray are recorded."""

    def build(gpus, mps, nodes=None):
        started = []

        def start_ray(address, num_cpus, num_gpus):
            started.append((num_cpus, num_gpus))
            sizes = [(num_cpus, num_gpus)] if nodes is None else nodes
            each = [{"CPU": float(cpus), "GPU": float(gpus)} for cpus, gpus in sizes]
            each = [{kind: count for kind, count in node.items() if count} for node in each]  # as Ray does
            lost = {"Alive": False, "Resources": {"CPU": 99.0, "GPU": 99.0}}
            alive = [{"Alive": True, "Resources": resources} for resources in each]
            monkeypatch.setattr(ray, "nodes", lambda: [*alive, lost])

        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(plan_module, "cpu_count", lambda: CORES)
        monkeypatch.setattr(plan_module, "start_ray", start_ray)
        return started

    return build


def refusal(expected):
    return pytest.raises(BadInput, match=expected) if isinstance(expected, str) else nullcontext()


def check(plan, elastic, device, workers, threads):
    assert (plan.workers, plan.device, plan.threads) == (workers, device, threads)
    scaling = ScalingConfig(**plan.scaling(elastic))  # it validates
    assert scaling.max_workers == workers and scaling.elasticity_enabled == elastic
    assert scaling.num_gpus_per_worker == (device == "cuda")
    assert scaling._resources_per_worker_not_none == ({"GPU": 1} if device == "cuda" else {"CPU": threads})


@pytest.mark.parametrize(("device", "gpus", "mps"), MACHINES)
@pytest.mark.parametrize("workers", ["auto", 1, 2, 9])
def test_the_plan_on_one_machine(machine, device, gpus, mps, workers):
    started, environment = machine(gpus, mps), Environment(Path(), workers, device=device)
    on, rows = MACHINES[device, gpus, mps]
    expected = rows[workers]
    with refusal(expected):
        with plan_resources(environment) as plan:
            assert trains_in_process(environment) == (expected[0] == 0)
            if on == "mps or cpu":
                on = "cpu" if expected[0] else "mps"
            check(plan, False, on, *expected)
            assert plan.mode == ("local workers" if expected[0] else "in process")
        assert started == ([(8, gpus if on == "cuda" else 0)] if expected[0] else [])
    if isinstance(expected, str):
        assert started == []  # refused at once, not after the seconds that Ray takes


@pytest.mark.parametrize(("nodes", "device", "workers", "expected"), CLUSTERS)
@pytest.mark.parametrize("gpus", [0, 2])
def test_the_plan_on_a_cluster_does_not_depend_on_this_machine(
    machine, nodes, device, workers, expected, gpus
):
    machine(gpus, False, nodes)
    environment = Environment(Path(), workers, device=device, ray_address=HEAD)
    with refusal(expected), plan_resources(environment) as plan:
        check(plan, True, *expected)
        assert plan.mode == f"cluster {HEAD}"


@pytest.mark.parametrize(
    ("threads", "workers", "expected"),
    [(3, "auto", 3), (99, "auto", 8), (3, 2, 3), (99, 2, 4), (99, 9, TOO_MANY_CPUS)],
)
def test_darkroom_threads_lowers_the_threads_of_a_worker(machine, threads, workers, expected):
    machine(0, False)
    with refusal(expected), plan_resources(Environment(Path(), workers, threads=threads)) as plan:
        assert plan.threads == expected


@pytest.mark.parametrize(
    ("gpus", "nodes", "environment", "remedy"),
    [
        (2, None, Environment(Path(), 3), "use at most 2 workers or DARKROOM_DEVICE=cpu, or add machines"),
        (1, None, Environment(Path(), 3), "use at most 1 worker or DARKROOM_DEVICE=cpu, or add machines"),
        (0, [], Environment(Path(), ray_address=HEAD), "add machines with CPUs to the cluster"),
    ],
)
def test_a_refusal_says_how_many_workers_to_use_instead(machine, gpus, nodes, environment, remedy):
    machine(gpus, False, nodes)
    with pytest.raises(BadInput) as caught, plan_resources(environment):
        pass
    assert (caught.value.where, caught.value.remedy) == ("DARKROOM_WORKERS", remedy)


def test_a_refusal_says_which_device_to_use_instead(machine):
    machine(0, False, EQUAL)
    cuda = Environment(Path(), device="cuda", ray_address=HEAD)
    with pytest.raises(BadInput) as caught, plan_resources(cuda):
        pass
    assert caught.value.where == "DARKROOM_DEVICE"
    assert caught.value.remedy == "use DARKROOM_DEVICE=auto or cpu"


def test_a_ray_that_was_running_before_is_left_running(machine, monkeypatch):
    machine(2, False)
    ends = []
    monkeypatch.setattr(ray, "shutdown", lambda: ends.append(True))
    for running, expected in ((True, []), (False, [True])):
        monkeypatch.setattr(ray, "is_initialized", lambda running=running: running)
        with plan_resources(Environment(Path())):
            pass
        assert ends == expected


def test_a_plan_without_gpus_asks_ray_for_its_threads():
    assert Plan(2, "cpu", 3, "local workers").scaling(elastic=True) == {
        "num_workers": (1, 2),
        "use_gpu": False,
        "resources_per_worker": {"CPU": 3},
    }
