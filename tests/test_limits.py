"""Cores and memory in a container: limits of control groups, and kills by the kernel."""

import os
from pathlib import Path

import pytest

from pipeline import doctor, environment, limits, repro, threads
from pipeline.core import dataset
from pipeline.data import decoding
from pipeline.environment import Environment
from pipeline.errors import DarkroomError
from pipeline.launch import plan
from pipeline.tracking import lineage
from tests.project import ROOT

GIB = 2**30
UNLIMITED = "9223372036854771712"  # of version 1


@pytest.fixture
def container(tmp_path, monkeypatch):
    """Write the files of control groups, by folder and name; the machine has 8 cores and 64 GiB."""

    def write(membership, groups):
        for folder, files in groups.items():
            for name, text in files.items():
                path = tmp_path / "cgroup" / folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{text}\n")
        (tmp_path / "membership").write_text("".join(f"{line}\n" for line in membership))

    monkeypatch.setattr(limits, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(limits, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(limits, "VMSTAT", tmp_path / "vmstat")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 64 * GIB // 4096}.get)
    return write


@pytest.mark.parametrize(
    ("membership", "groups", "cores"),
    [
        ([], {}, 8),  # no Linux, or no control groups
        (["0::/"], {"": {"cpu.max": "max 100000"}}, 8),
        (["0::/"], {"": {"cpu.max": "200000 100000"}}, 2),
        (["0::/"], {"": {"cpu.max": "150000 100000"}}, 2),
        (["0::/"], {"": {"cpu.max": "10000 100000"}}, 1),
        (["0::/"], {"": {"cpu.max": "1600000 100000"}}, 8),
        (["0::/a/b"], {"a": {"cpu.max": "300000 100000"}, "a/b": {"cpu.max": "max 100000"}}, 3),
        (["0::/a/b"], {"a": {"cpu.max": "300000 100000"}, "a/b": {"cpu.max": "100000 100000"}}, 1),
        (["0::/a"], {"a": {"cpu.max": "max 100000"}, "other": {"cpu.max": "100000 100000"}}, 8),
        # Version 1, also where the container sees its own group as the root.
        (
            ["3:cpu,cpuacct:/docker/0"],
            {"cpu": {"cpu.cfs_quota_us": "50000", "cpu.cfs_period_us": "25000"}},
            2,
        ),
        (["3:cpu:/"], {"cpu": {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}}, 8),
        (["2:cpuset:/"], {"cpu": {"cpu.cfs_quota_us": "100000", "cpu.cfs_period_us": "100000"}}, 8),
    ],
)
def test_a_quota_lowers_the_number_of_cores(container, membership, groups, cores):
    container(membership, groups)
    assert limits.cpu_count() == cores


def test_without_a_quota_the_affinity_counts(container, monkeypatch):
    container([], {})
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(3))
    assert limits.cpu_count() == 3
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS
    assert limits.cpu_count() == 8


@pytest.mark.parametrize(
    ("membership", "groups", "gibibytes"),
    [
        ([], {}, 64),
        (["0::/a"], {"a": {"memory.max": "max"}}, 64),
        (["0::/a/b"], {"a": {"memory.max": str(2 * GIB)}, "a/b": {"memory.max": "max"}}, 2),
        (["4:memory:/docker/0"], {"memory": {"memory.limit_in_bytes": str(3 * GIB)}}, 3),
        (["4:memory:/"], {"memory": {"memory.limit_in_bytes": UNLIMITED}}, 64),
    ],
)
def test_the_memory_is_the_machines_or_the_limit(container, membership, groups, gibibytes):
    container(membership, groups)
    assert limits.memory_limit() == gibibytes * GIB
    assert f"the limit is {gibibytes}.0 GiB" in limits.out_of_memory()


@pytest.mark.parametrize(
    ("membership", "groups", "kills"),
    [
        ([], {}, 0),
        (
            ["0::/a"],
            {"a": {"memory.events": "low 0\nhigh 0\nmax 91\noom 7\noom_kill 2\noom_group_kill 0"}},
            2,
        ),
        (
            ["4:memory:/docker/0"],
            {"memory": {"memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 5"}},
            5,
        ),
        (["0::/"], {"..": {"vmstat": "nr_free_pages 5\noom_kill 3"}}, 3),  # the root has no memory.events
    ],
)
def test_kills_by_the_kernel_are_counted(container, membership, groups, kills):
    container(membership, groups)
    assert limits.oom_kills() == kills


class Threads:
    """Stands for a ThreadPoolExecutor; records its number of threads."""

    def __init__(self, count):
        Threads.count = count

    def __enter__(self):
        return self

    def __exit__(self, *details):
        pass

    def map(self, *given):
        return []


@pytest.mark.parametrize("cores", [1, 3])
def test_every_part_uses_as_many_cores_as_the_quota_allows(container, monkeypatch, capsys, cores):
    container(["0::/"], {"": {"cpu.max": f"{cores}00000 100000", "memory.max": str(GIB)}})
    here = Environment(Path(), device="cpu")
    with plan.plan_resources(here) as planned:
        assert planned.threads == cores

    starts = []
    monkeypatch.setattr(plan, "start_ray", lambda address, *counts: starts.append(counts))
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": float(starts[0][0])}}])
    with plan.plan_resources(Environment(Path(), 1, device="cpu")) as planned:
        assert starts == [(cores, 0)] and planned.threads == cores

    for module in (dataset, threads):
        monkeypatch.setattr(module, "ThreadPoolExecutor", Threads)
    dataset._verify(Path(), [])
    assert Threads.count == cores
    Threads.count = 0
    with decoding.workers(here, num_files=1) as decode:
        list(decode(decoding.Decoder(Path(), 1, 8), []))
    assert Threads.count == cores

    repro._max_trainings(here, ["train-a", "train-b"], jobs=2, cores=0)
    assert f"each uses {cores} threads of {cores} cores" in capsys.readouterr().out
    assert lineage.version_tags()["darkroom.machine"].endswith(f", {cores} cores")
    assert f"{cores} cores and 1.0 GiB of memory can be used" in [each.what for each in doctor._devices(here)]


@pytest.mark.parametrize(
    ("quota", "before", "after"),
    [("200000", {}, "2"), ("200000", {"OMP_NUM_THREADS": "5"}, "5"), ("max", {}, None), ("800000", {}, None)],
)
def test_openmp_which_does_not_know_the_quota_is_told(container, monkeypatch, quota, before, after):
    container(["0::/"], {"": {"cpu.max": f"{quota} 100000"}})
    monkeypatch.setattr(environment.os, "environ", dict(before))
    environment.prepare()
    assert environment.os.environ.get("OMP_NUM_THREADS") == after


def test_no_other_module_counts_cores():
    for path in [*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("stages/*.py")]:
        if path.name != "limits.py":
            text = path.read_text()
            for call in ("os.cpu_count", "sched_getaffinity", "process_cpu_count", "joblib"):
                assert call not in text or path.name == "environment.py", f"{path}: {call}"


@pytest.mark.parametrize(
    ("name", "code", "kills", "said"),
    [
        ("train-a", 137, 1, True),
        ("train-a", 137, 0, False),
        ("train-a", 2, 1, False),  # the process of another command was killed
        ("", 1, 1, True),  # of one plain `dvc repro` the codes of the stages are not known
    ],
)
def test_darkroom_repro_says_that_the_kernel_may_have_ended_a_stage(monkeypatch, name, code, kills, said):
    class Failed(repro._Stage):
        def start(self, root):
            self.state, self.code = "failed", code

    counts = iter([4, 4 + kills])
    monkeypatch.setattr(repro, "oom_kills", lambda: next(counts))
    with pytest.raises(DarkroomError) as caught:
        repro._run_all(Path(), {name: Failed(name, [], [])}, 1, 1)
    what = f"failed with exit code {code}" + f"; meanwhile {limits.out_of_memory()}" * said
    remedy = "see above; the same command continues" + f". For memory: {limits.LESS_MEMORY}" * said
    assert (caught.value.what, caught.value.remedy, caught.value.exit_code) == (what, remedy, code)


@pytest.mark.parametrize(
    ("running", "own", "num_threads", "busy"),
    [
        ([1, 1, 1, 1, 1], "R", 8, False),
        ([1, 2, 2, 1, 2], "R", 8, True),  # one other process
        ([3, 3, 3, 3, 3], "RRSR", 8, False),  # its own threads
        ([3, 1, 1, 1, 9], "R", 8, False),  # others that ran for a moment
        ([6, 6, 6, 6, 6], "R", 3, False),  # five others have the other five cores
        ([7, 7, 7, 7, 7], "R", 3, True),
        ([], "R", 8, False),  # not on Linux
    ],
)
def test_the_machine_is_busy_if_others_compute_on_the_cores_of_this_process(
    monkeypatch, tmp_path, running, own, num_threads, busy
):
    for number, state in enumerate(own):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "stat").write_text(f"{number} (a (b) c) {state} 1 2")
    lines = [f"0.5 0.4 0.3 {count}/400 12345" for count in running]
    read = limits._text
    monkeypatch.setattr(limits, "THREADS", tmp_path)
    monkeypatch.setattr(limits.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(
        limits, "_text", lambda path: read(path) if path != limits.LOADAVG else lines.pop(0) if lines else ""
    )
    assert limits.is_busy(num_threads) == busy
