"""Check every machine of a cluster before a training starts: versions, storage, data and clock."""

import os
import platform
import socket
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.errors import DarkroomError
from pipeline.files import digest_of, digest_of_tree, read_json

TIMEOUT_SECONDS = 120
MAX_SKEW_SECONDS = 30
TOKEN = ".seen-by-all"  # the driver writes this file into the storage folder; the other machines look for it
USABLE = ("visible", "read and written")  # values of the column "storage"
COLUMNS = ("host", "address", "CPUs", "GPUs", "python", "ray", "torch", "code", "storage", "data", "clock")


@dataclass(frozen=True)
class PreflightRequest:
    """The storage and data that each machine looks for."""

    storage: str  # a folder or an address
    data: str  # the folder of the processed data
    digest: str  # of the processed data


def probe_machine(request: PreflightRequest) -> dict[str, Any]:
    """Versions and time of this machine, and whether it can use the storage and the data."""
    import pipeline

    root = Path(pipeline.__file__).parent
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "ray": metadata.version("ray"),
        "torch": metadata.version("torch"),
        "code": digest_of_tree([root], root)[:12],
        "storage": _probe_storage(request.storage),
        "data": _probe_data(Path(request.data), request.digest),
        "time": time.time(),
    }


def check_cluster(request: PreflightRequest) -> tuple[list[dict[str, Any]], list[str]]:
    """Probe every live machine of the cluster. Returns the results, one for each machine, and the problems.

    Raises ``DarkroomError`` if a machine does not answer or Darkroom is not installed there.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"]]
    began = time.time()
    probe = ray.remote(num_cpus=0, max_retries=0)(probe_machine)
    on_node = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    results = [probe.options(scheduling_strategy=strategy).remote(request) for strategy in on_node]
    machines = []
    for node, result in zip(nodes, results, strict=True):
        address = node["NodeManagerAddress"]
        try:
            machine = ray.get(result, timeout=TIMEOUT_SECONDS)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]
            remedy = "install the same Darkroom there: one image for all machines (infra/docker)"
            raise DarkroomError(f"the preflight failed: {reason}", where=address, remedy=remedy) from None
        devices = {f"{kind}s": int(node["Resources"].get(kind, 0)) for kind in ("CPU", "GPU")}
        clock = max(0.0, began - machine["time"], machine["time"] - time.time())
        machines.append({**machine, "address": address, **devices, "clock": round(clock, 1)})
    return machines, _find_problems(machines, probe_machine(request))


def format_table(machines: list[dict[str, Any]]) -> str:
    """The machines as a table of text."""
    rows = [COLUMNS, *(tuple(str(machine[column]) for column in COLUMNS) for machine in machines)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    )


def _find_problems(machines: list[dict[str, Any]], local: dict[str, Any]) -> list[str]:
    """Differences from this machine, and clocks that are off."""
    problems = []
    for machine in machines:
        name = f"{machine['host']} ({machine['address']})"
        differs = [key for key in ("ray", "torch", "code") if machine[key] != local[key]]
        if machine["python"].rpartition(".")[0] != local["python"].rpartition(".")[0]:
            differs.append("python")
        problems += [f"{name} has {key} {machine[key]}, this machine {local[key]}" for key in differs]
        if machine["clock"] > MAX_SKEW_SECONDS:
            problems.append(f"the clock of {name} is {machine['clock']:.0f} s off")
    return problems


def _probe_storage(storage: str) -> str:
    """One of ``USABLE``, or what is wrong."""
    if "://" not in storage:
        return "visible" if Path(storage, TOKEN).exists() else "not visible"
    from pipeline.launch.storage import open_address

    try:
        filesystem, root = open_address(storage)
        path, content = f"{root}/preflight/{socket.gethostname()}-{os.getpid()}", os.urandom(8)
        filesystem.pipe_file(path, content)
        same = filesystem.cat_file(path) == content
        filesystem.rm_file(path)
        return "read and written" if same else "returns other bytes than were written"
    except Exception as error:
        return f"fails: {(str(error) or type(error).__name__).splitlines()[0][:80]}"


def _probe_data(folder: Path, digest: str) -> str:
    """``visible``, ``differs``, or ``sent``: the machine does not have the data, so that it is sent there."""
    try:
        return "visible" if digest_of(read_json(folder / "manifest.json")) == digest else "differs"
    except (OSError, ValueError):
        return "sent"
