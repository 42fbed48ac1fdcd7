"""The cores and the memory that this process may use: those of the machine, or less in a container."""

import math
import os
import resource
import time
from pathlib import Path

# Linux: docs.kernel.org/admin-guide/cgroup-v2.html; in version 1 each controller has its own folder.
CGROUPS, MEMBERSHIP, VMSTAT = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"), Path("/proc/vmstat")
LOADAVG, THREADS, LOAD_SAMPLES, LOAD_SECONDS = Path("/proc/loadavg"), Path("/proc/self/task"), 5, 0.01

LESS_MEMORY = (
    "DARKROOM_MICROBATCH computes a batch in pieces; or lower batch_size or the image size in params.yaml"
)


def cpu_count() -> int:
    """The number of cores: the affinity of this process, or the CPU quota of its control groups if lower."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(affinity, cpu_quota())))


def cpu_quota() -> float:
    """The lowest CPU quota of the control groups of this process, in cores; infinite if there is none."""
    quotas = [math.inf]
    for group in _control_groups("cpu"):
        version_1 = _words(group / "cpu.cfs_quota_us") + _words(group / "cpu.cfs_period_us")
        match _words(group / "cpu.max") or version_1:
            case [quota, period] if quota.isdigit():  # not "max" or "-1"
                quotas.append(int(quota) / int(period))
    return min(quotas)


def is_busy(num_threads: int) -> bool:
    """Whether the other processes leave fewer than ``num_threads`` cores to this one now (Linux only)."""
    others = []
    for _ in range(LOAD_SAMPLES):
        running = [int(word.partition("/")[0]) for word in _words(LOADAVG)[3:4]]  # such as 3/412, of all
        states = [_text(file).rpartition(")")[2].split()[:1] for file in THREADS.glob("*/stat")]
        others += [count - states.count(["R"]) for count in running]
        time.sleep(LOAD_SECONDS)
    return bool(others) and sorted(others)[len(others) // 2] + num_threads > (os.cpu_count() or 1)


def memory_limit() -> int:
    """The bytes of memory: those of the machine, or the limit of control groups or ``ulimit -v`` if lower."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    if address_space():
        limits.append(address_space())
    for group in _control_groups("memory"):
        words = _words(group / "memory.max") + _words(group / "memory.limit_in_bytes")
        limits += [int(word) for word in words if word.isdigit()]
    return min(limits)


def address_space() -> int:
    """The bytes of virtual memory that ``ulimit -v`` allows a process; 0 without a limit."""
    return max(0, resource.getrlimit(resource.RLIMIT_AS)[0])


def oom_kills() -> int:
    """How many processes of its control group the kernel has killed because memory ran out; 0 if unknown."""
    groups = _control_groups("memory")
    files = [group / name for group in groups for name in ("memory.events", "memory.oom_control")]
    for words in map(_words, [*files, VMSTAT]):
        if "oom_kill" in words:
            return int(words[words.index("oom_kill") + 1])
    return 0


def out_of_memory() -> str:
    """What to say when :func:`oom_kills` rose."""
    return f"the kernel ended a process because memory ran out; the limit is {memory_limit() / 2**30:.1f} GiB"


def _control_groups(controller: str) -> list[Path]:
    """The folders of the control groups that contain this process, the innermost first."""
    groups: list[Path] = []
    for line in _text(MEMBERSHIP).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            root = CGROUPS / (controller if controllers else "")
            inner = root / path.lstrip("/")  # in a container it may not exist, but the root does
            groups += [folder for folder in (inner, *inner.parents) if folder.is_relative_to(root)]
    return groups


def _words(path: Path) -> list[str]:
    return _text(path).split()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
