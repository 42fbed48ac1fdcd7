"""For the benchmarks: create projects, run commands with a limit, start a cluster, compare alternatives."""

import os
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import yaml

ROOT, BIN, LIMIT_SECONDS = Path(__file__).parents[1], Path(sys.executable).parent, 600
# Variables of the caller that would affect a measurement.
REMOVED = ("DARKROOM_", "MLFLOW_", "DVC_", "RAY_", "GIT_")
Figures = dict[str, float]


def run(folder: Path, *command: str, until: Callable[[], bool] = lambda: False, **more: str) -> float:
    """Run Python in ``folder``; return the wall seconds.

    Kill its process group when ``until`` returns true.
    """
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env=environment(more),
            start_new_session=True,
            stdout=output,
            stderr=output,
        )
        began, cut = time.monotonic(), False
        try:
            while (
                process.poll() is None and not (cut := until()) and time.monotonic() < began + LIMIT_SECONDS
            ):
                time.sleep(0.02)
            seconds = time.monotonic() - began
        finally:
            ended = process.poll()
            if ended is None and not cut:  # on SIGTERM Darkroom ends its child processes within a minute
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=70)
            if ended is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait(timeout=30)
        if not cut and ended != 0:
            output.seek(0)
            sys.exit(f"{' '.join(command)}: exit code {ended} after {seconds:.0f} s\n{output.read()}")
    return seconds


def environment(more: dict[str, str]) -> dict[str, str]:
    """The environment variables of a measured process."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(REMOVED)}
    return {
        **kept,
        "PATH": f"{BIN}{os.pathsep}{kept['PATH']}",
        "PYTHONPATH": str(ROOT),
        "DARKROOM_DEVICE": "cpu",
        **more,
    }


def digits(folder: Path, num_steps: int | None) -> Path:
    """Create a project with processed digits and this project's params (``num_steps`` if given)."""
    params = {**yaml.safe_load((ROOT / "params.yaml").read_text())}
    params["data"] |= {"source": "digits", "folder": ""}
    for section in params.values():
        if num_steps and "training" in section:
            training = section["training"]
            training |= {"num_steps": num_steps} | {
                f"{what}_every": max(1, num_steps // 5) for what in ("validate", "sample", "checkpoint")
            }
            training |= {
                "log_every": max(1, num_steps // 25),
                "schedule": {**training.get("schedule", {}), "warmup_steps": num_steps // 20},
            }
    (base := folder / "base").mkdir()
    (base / "params.yaml").write_text(yaml.safe_dump(params))
    for stage in ("download", "preprocess"):
        run(base, "-m", f"stages.{stage}")
    return base


def project(base: Path) -> Path:
    """Create a project next to ``base``, with its params and its processed data."""
    folder = Path(tempfile.mkdtemp(dir=base.parent))
    shutil.copy(base / "params.yaml", folder)
    (folder / "data/processed").mkdir(parents=True)
    (folder / "data/processed/images").symlink_to(base / "data/processed/images")
    return folder


def dvc_project(base: Path) -> Path:
    """Create a git and DVC project next to ``base``, with its params and this project's code."""
    folder = Path(tempfile.mkdtemp(dir=base.parent))
    for path in ("pipeline", "stages", "data/own"):
        shutil.copytree(ROOT / path, folder / path, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (ROOT / "dvc.yaml", ROOT / ".dvcignore", ROOT / ".gitignore", base / "params.yaml"):
        shutil.copy(path, folder)
    (folder / ".dvc/tmp").mkdir(parents=True)
    (folder / ".dvc/config").write_text(
        f"[core]\n    analytics = false\n    site_cache_dir = {folder}/.dvc/site\n"
    )
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True, timeout=60)
    return folder


@contextmanager
def cluster(folder: Path, cpus: int = 8) -> Iterator[dict[str, str]]:
    """Start a head node on loopback with its files in ``folder``; yield the variables to connect to it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    own["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # else Ray listens on the machine's outer address
    command = f"{BIN}/ray start --head --port {port} --num-cpus {cpus} --temp-dir {folder}"
    command += " --node-ip-address 127.0.0.1"
    try:
        run(ROOT, *command.split(), "--include-dashboard", "false", "--disable-usage-stats", **own)
        yield own | {"RAY_ADDRESS": f"127.0.0.1:{port}", "DARKROOM_THREADS": "1"}
    finally:
        for one in nodes(folder):
            with suppress(psutil.NoSuchProcess):
                one.kill()


def kill_workers(folder: Path) -> None:
    """Kill the workers of a killed driver. They would end by themselves only after some seconds."""
    deadline, parents = time.monotonic() + 60, {one.pid for one in nodes(folder)}
    while left := [
        one
        for one in psutil.process_iter(["ppid", "cmdline"])
        if one.info["ppid"] in parents
        and any(kind in " ".join(one.info["cmdline"] or []) for kind in ("TrainWorker", "TrainController"))
    ]:
        if time.monotonic() > deadline:
            sys.exit("workers outlived their driver for 60 s")
        for one in left:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        time.sleep(0.1)


def nodes(folder: Path) -> list[psutil.Process]:
    """Ray's processes with files in ``folder``. Their children are the workers."""
    return [
        one for one in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(one.info["cmdline"] or [])
    ]


def compare(title: str, ways: dict[str, Callable[[], Figures]], rounds: int) -> None:
    """Run the alternatives in turn, in reverse order in every second round, and print the medians.

    Also prints the ratio of the first figure to that of the first alternative.
    """
    found: dict[str, list[Figures]] = {label: [] for label in ways}
    for number in range(rounds):
        for label in list(ways)[:: -1 if number % 2 else 1]:
            found[label].append(ways[label]())
    rounds_of_first = next(iter(found.values()))
    key, *_ = keys = list(rounds_of_first[0])
    rows = {name: [statistics.median(one[name] for one in each) for each in found.values()] for name in keys}
    ratios = [
        [one[key] / first[key] for one, first in zip(each, rounds_of_first, strict=True)]
        for each in found.values()
    ]
    if len(ways) > 1:
        rows |= {f"ratio of {key}": [statistics.median(each) for each in ratios]}
    if len(ways) > 1 and rounds > 1:
        rows |= {
            "  its lowest": [min(each) for each in ratios],
            "  its highest": [max(each) for each in ratios],
        }
    print(f"\n{title}, {rounds} rounds\n{'':40}" + "".join(f"{label:>20}" for label in ways))
    for name, values in rows.items():
        print(f"{name:40}" + "".join(f"{value:>20.5g}" for value in values), flush=True)
