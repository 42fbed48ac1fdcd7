"""Check and measure Darkroom on a GPU, in at most eight minutes: prints a table and writes a JSON file.

    python benchmarks/gpu.py --data FOLDER           # on a machine with a GPU
    python benchmarks/gpu.py --miniature             # every part on a CPU, with tiny networks
    python benchmarks/gpu.py --prepare FOLDER --mirror DIR   # write FOLDER/mnist and FOLDER/cifar10

It needs torch, numpy, pydantic and safetensors. Without --data, parts that need MNIST or CIFAR-10 are left
out, and the others use synthetic images. A part that fails is reported, and the next one runs; then the exit
code is 1. docs/gpu.md describes the parts.
"""

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # Darkroom need not be installed

from pipeline import environment  # noqa: E402

environment.prepare()  # before CUDA starts

import gpu_child  # noqa: E402
import gpu_data  # noqa: E402
import gpu_models  # noqa: E402
import gpu_parts  # noqa: E402
import torch  # noqa: E402
from gpu_bench import MINIATURE, Bench, LeftOut, Sizes, synthetic_data  # noqa: E402
from gpu_speed import now  # noqa: E402

from pipeline.core.determinism import allow_tf32, make_deterministic  # noqa: E402
from pipeline.errors import DarkroomError  # noqa: E402
from pipeline.files import read_json, write_json  # noqa: E402
from pipeline.process import keep_freed_memory  # noqa: E402

FULL_MINUTES = 8.0
# In order of importance: the least seconds that each needs, and the most that it may take.
PARTS = {
    "machine": (gpu_parts.machine, 0, 30),
    "repeat": (gpu_parts.repeat, 10, 90),
    "agreement": (gpu_parts.agreement, 5, 60),
    "kill": (gpu_parts.kill, 20, 90),
    "contract": (gpu_parts.contract, 15, 90),
    "speed": (gpu_parts.speed, 15, 90),
    "cifar10": (gpu_models.PARTS["cifar10"], 30, 150),
    "mnist": (gpu_models.PARTS["mnist"], 30, 150),
    "gan-cifar10": (gpu_models.PARTS["gan-cifar10"], 30, 150),
    "precision": (gpu_parts.precision, 10, 90),
    "deterministic": (gpu_parts.deterministic, 10, 60),
    "gan-mnist": (gpu_models.PARTS["gan-mnist"], 30, 150),
    "cifar10-settings": (gpu_models.settings_of_cifar10, 40, 300),
    "ray": (gpu_parts.ray, 20, 90),
}
LONGEST = 300  # characters of a line of the table


class OutOfTime(BaseException):
    """The time of a part is over. It is no ``Exception``, so that a part does not catch it."""


class Ended(OutOfTime):
    """SIGTERM ends the script, as from ``timeout``. What the part has found so far is kept."""


def run_part(name: str, bench: Bench) -> dict[str, Any]:
    """Run a part: its status, seconds and figures. Nothing it raises gets further."""
    part, needed, most = PARTS[name]
    if bench.left < needed * bench.scale:
        return {"status": "left out", "reason": f"{max(0.0, bench.left):.0f} s are left"}
    began, end = time.monotonic(), bench.deadline
    bench.problems, bench.found = [], {}
    bench.deadline = end if bench.sizes.tiny else min(end, began + most)
    try:
        with limit(bench.left):
            bench.found |= part(bench)
        status = {"status": "failed", "error": "; ".join(bench.problems)} if bench.problems else {}
    except LeftOut as reason:
        status = {"status": "left out", "reason": str(reason)}
    except (Exception, OutOfTime) as error:
        problems = [*bench.problems, f"{type(error).__name__}: {error}"]
        status = {"status": "failed", "error": "; ".join(problems), "traceback": traceback.format_exc()}
        if isinstance(error, Ended):
            end = time.monotonic()
    bench.deadline = end
    return {"status": "done", "took_seconds": round(time.monotonic() - began, 1)} | bench.found | status


def is_lost(device: torch.device) -> bool:
    """Whether ``device`` can no longer be used by this process, as after an invalid access to its memory."""
    try:
        now(device)
    except RuntimeError:
        return True
    return False


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise ``OutOfTime`` in the block after ``seconds``, or ``Ended`` at SIGTERM."""

    def stop(number: int, frame: Any) -> None:
        raise Ended("ended by SIGTERM") if number == signal.SIGTERM else OutOfTime("no time is left")

    before = {number: signal.signal(number, stop) for number in (signal.SIGALRM, signal.SIGTERM)}
    signal.setitimer(signal.ITIMER_REAL, max(0.1, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def rows(name: str, found: dict[str, Any]) -> Iterator[str]:
    """The lines of the table for a part. Tracebacks are in the JSON file only."""
    head = {key: found[key] for key in ("took_seconds", "reason", "error") if key in found}
    hidden = {"status", "traceback", "tracebacks", "errors", *head}
    others = {key: value for key, value in found.items() if key not in hidden}
    plain = {key: value for key, value in others.items() if not isinstance(value, dict)}
    yield f"{name:16} {found['status']:9} {shown(plain | head)}"[:LONGEST]
    for key, value in others.items():
        if isinstance(value, dict):
            yield f"{'':16} {key:9} {shown(value)}"[:LONGEST]


def shown(figures: dict[str, Any]) -> str:
    """Names and values on a line."""
    return ", ".join(f"{key.replace('_', ' ')} {_shown(value)}" for key, value in figures.items())


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)


def measure(given: argparse.Namespace, device: torch.device) -> int:
    """Run the parts, print the table; the exit code."""
    minutes = given.minutes or (1.5 if given.miniature else FULL_MINUTES)
    deadline = time.monotonic() + 60 * minutes
    make_deterministic(torch.get_num_threads())
    allow_tf32(False)
    keep_freed_memory()
    sizes = MINIATURE if given.miniature else Sizes()
    report: dict[str, Any] = {"command": " ".join(sys.argv), "minutes": minutes, "parts": {}}
    report |= {"started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "miniature": given.miniature}
    if given.continues:
        report = read_json(given.json)
    parts = report["parts"]
    wanted = [name for name in given.only or PARTS if name not in parts]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = synthetic_data(sizes, folder)
        data |= {} if given.data is None else gpu_data.open_all(given.data, folder)
        scale = 1.0 if given.miniature else min(1.0, minutes / FULL_MINUTES)
        bench = Bench(device, sizes, folder, deadline, data, scale)
        report["data"] = {name: each.digest for name, each in data.items()}
        for name in wanted:
            parts[name] = found = run_part(name, bench)
            write_json(given.json, json.loads(json.dumps(report), parse_constant=str))  # NaN is no JSON
            print("\n".join(rows(name, found)), flush=True)
            if found["status"] == "failed" and is_lost(device):
                break
    if missing := [name for name in wanted if name not in parts]:  # a new process can use the device again
        left = max(0.1, (deadline - time.monotonic()) / 60)
        more = ["--continues", "--minutes", str(left), "--only", *missing]
        return subprocess.run([sys.executable, __file__, *sys.argv[1:], *more]).returncode
    print("\n".join(line for name, found in parts.items() for line in rows(name, found)))
    failed = [name for name, found in parts.items() if found["status"] == "failed"]
    left_out = [name for name, found in parts.items() if found["status"] == "left out"]
    print(f"failed: {', '.join(failed) or 'none'}; left out: {', '.join(left_out) or 'none'}; {given.json}")
    return 1 if failed else 0


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with mnist and cifar10, processed or as .npz files")
    parser.add_argument("--minutes", type=float, help="limit of all parts together")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--json", type=Path, default=Path("gpu.json"))
    parser.add_argument("--miniature", action="store_true", help="tiny networks, on a CPU")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda; with --miniature cpu")
    parser.add_argument("--prepare", type=Path, metavar="FOLDER", help="write the processed data and end")
    parser.add_argument("--mirror", type=Path, help="with --prepare: folder with the archives")
    parser.add_argument("--continues", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        gpu_child.run(given.child)
        return 0
    if given.prepare:
        if given.mirror is None:
            parser.error("--prepare needs --mirror")
        gpu_data.prepare(given.prepare, given.mirror)
        return 0
    device = torch.device(given.device or ("cpu" if given.miniature else "cuda"))
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is available; --miniature runs on a CPU")
    return measure(given, device)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DarkroomError as error:
        sys.exit(f"error: {error}")
