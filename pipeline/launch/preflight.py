"""What each machine of a cluster is and sees, before anything is started there: one table, and a refusal that names what is wrong."""

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

SECONDS = 120
MAX_SKEW_SECONDS = 30
TOKEN = ".seen-by-all"  # a file of the driver in the storage folder
COLUMNS = ("host", "address", "CPUs", "GPUs", "python", "ray", "torch", "code", "storage", "data", "clock")


@dataclass(frozen=True)
class Asked:
    """What every machine is asked: whether it sees the storage (a folder, or an address) and the data (folder and digest)."""

    storage: str
    data: str
    digest: str


def look(asked: Asked) -> dict[str, Any]:
    """This machine, as it sees itself."""
    import pipeline

    root = Path(pipeline.__file__).parent
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "ray": metadata.version("ray"),
        "torch": metadata.version("torch"),
        "code": digest_of_tree([root], root)[:12],
        "storage": _see_storage(asked.storage),
        "data": _see_data(Path(asked.data), asked.digest),
        "time": time.time(),
    }


def examine(asked: Asked) -> tuple[list[dict[str, Any]], list[str]]:
    """Every living machine of the cluster, with the address and the devices that Ray names; and what is wrong.

    Raises ``DarkroomError`` where a machine does not answer, or has no Darkroom.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"]]
    began = time.time()
    remote = ray.remote(num_cpus=0, max_retries=0)(look)
    answers = [
        remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            asked
        )
        for node in nodes
    ]
    found = []
    for node, answer in zip(nodes, answers, strict=True):
        address = node["NodeManagerAddress"]
        try:
            facts = ray.get(answer, timeout=SECONDS)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]
            remedy = "install the same Darkroom there: one image for all machines (infra/docker)"
            raise DarkroomError(f"the preflight failed: {reason}", where=address, remedy=remedy) from None
        devices = {
            "address": address,
            "CPUs": int(node["Resources"].get("CPU", 0)),
            "GPUs": int(node["Resources"].get("GPU", 0)),
        }
        clock = max(0.0, began - facts["time"], facts["time"] - time.time())
        found.append({**facts, **devices, "clock": round(clock, 1)})
    return found, _wrong(found, look(asked))


def table(machines: list[dict[str, Any]]) -> str:
    """The machines as a person reads them."""
    rows = [COLUMNS, *(tuple(str(machine[column]) for column in COLUMNS) for machine in machines)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    )


def _wrong(machines: list[dict[str, Any]], here: dict[str, Any]) -> list[str]:
    """What is not as on this machine, or not to be used, in words."""
    said = []
    for machine in machines:
        name = f"{machine['host']} ({machine['address']})"
        python = machine["python"].rpartition(".")[0] == here["python"].rpartition(".")[0]
        differs = [key for key in ("ray", "torch", "code") if machine[key] != here[key]] + (
            [] if python else ["python"]
        )
        said += [f"{name} has {key} {machine[key]}, this machine {here[key]}" for key in differs]
        if machine["clock"] > MAX_SKEW_SECONDS:
            said.append(f"the clock of {name} is {machine['clock']:.0f} s off")
    return said


def _see_storage(storage: str) -> str:
    """``here`` for a folder that this machine sees, ``read and written`` for an address that answers, else what is wrong."""
    if "://" not in storage:
        return "here" if Path(storage, TOKEN).exists() else "not seen"
    from pipeline.launch.storage import open_address

    try:
        there, root = open_address(storage)
        path, mark = f"{root}/preflight/{socket.gethostname()}-{os.getpid()}", os.urandom(8)
        there.pipe_file(path, mark)
        same = there.cat_file(path) == mark
        there.rm_file(path)
        return "read and written" if same else "does not keep what is written"
    except Exception as error:
        return f"fails: {(str(error) or type(error).__name__).splitlines()[0][:80]}"


def _see_data(folder: Path, digest: str) -> str:
    try:
        return "here" if digest_of(read_json(folder / "manifest.json")) == digest else "other"
    except (OSError, ValueError):
        return "sent"
