"""What Ray Train costs while it trains, against the same loop in plain processes of PyTorch's: python benchmarks/steady.py

[--models cnn] [--workers 1 2] [--turns 40] [--seconds 3]: the two trainings take turns on the same cores, each for some seconds in which
every process of the other is stopped (SIGSTOP), Ray's own with it, so that a machine's changes of speed strike both. Printed is the ratio
of steps/s, the geometric mean over pairs of turns, with its interval of 95 %. Digits by params.yaml, workers of one thread, a cluster on
loopback; a count of steps, records, validations and checkpoints are in both, MLflow in neither.
"""

import argparse
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import yaml
from surroundings import ROOT, cluster, digits, environment, nodes, project

WARM_STEPS, START_SECONDS, SETTLE_SECONDS = 500, 120, 0.3


class Way:
    """A training that goes on and on in processes of its own."""

    def __init__(self, how: str, name: str, base: Path, workers: int, variables: dict[str, str]) -> None:
        self.folder, self.ray = project(base), base.parent / "ray" if how == "ray" else None
        path = self.folder / "steps"
        np.memmap(path, np.int64, "w+", shape=(1,))
        command = [
            sys.executable,
            str(ROOT / "benchmarks/loops.py"),
            how,
            name,
            str(self.folder),
            str(workers),
            str(path),
        ]
        self.process = subprocess.Popen(
            command, cwd=self.folder, env=environment(variables), start_new_session=True
        )
        self.steps = np.memmap(path, np.int64, "r")

    def send(self, number: int) -> None:
        """A signal to all of its processes, the cluster's too."""
        roots = [psutil.Process(self.process.pid), *(nodes(self.ray) if self.ray else [])]
        for root in roots:
            with suppress(psutil.NoSuchProcess):
                for one in {root, *root.children(recursive=True)}:
                    with suppress(psutil.NoSuchProcess):
                        one.send_signal(number)

    def rate(self, seconds: float) -> float:
        """Steps per second, from a moment after it goes on."""
        self.send(signal.SIGCONT)
        time.sleep(SETTLE_SECONDS)
        first, began = int(self.steps[0]), time.perf_counter()
        time.sleep(seconds)
        taken, passed = int(self.steps[0]) - first, time.perf_counter() - began
        self.send(signal.SIGSTOP)
        return taken / passed


@contextmanager
def running(name: str, base: Path, workers: int, variables: dict[str, str]) -> Iterator[tuple[Way, Way]]:
    """Both trainings, stopped, after their first steps."""
    ways = []
    try:
        for how in ("plain", "ray"):
            ways.append(Way(how, name, base, workers, variables | {"DARKROOM_WORKERS": str(workers)}))
            deadline = time.monotonic() + START_SECONDS
            while ways[-1].steps[0] < WARM_STEPS:
                if ways[-1].process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"{how}: no {WARM_STEPS} steps in {START_SECONDS} s")
                time.sleep(0.1)
            ways[-1].send(signal.SIGSTOP)
        yield ways[0], ways[1]
    finally:
        for way in ways:
            way.send(signal.SIGCONT)
            with suppress(ProcessLookupError):
                os.killpg(way.process.pid, signal.SIGKILL)
            way.process.wait(timeout=30)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["cnn"])
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=3.0)
    given = parser.parse_args()
    signal.signal(
        signal.SIGTERM, lambda number, frame: sys.exit(128 + number)
    )  # so that everything is cleaned up
    with tempfile.TemporaryDirectory() as temporary:
        base = digits(Path(temporary), None)
        params = yaml.safe_load((base / "params.yaml").read_text())
        for name in given.models:
            params[name]["training"]["num_steps"] = 100_000_000
        (base / "params.yaml").write_text(yaml.safe_dump(params))
        for name in given.models:
            for workers in given.workers:
                cpus = max(
                    workers, os.cpu_count() or 1
                )  # Ray keeps an idle process for each, which is not free either
                with (
                    cluster(base.parent / "ray", cpus) as variables,
                    running(name, base, workers, variables) as (plain, ray),
                ):
                    pairs = []
                    for turn in range(given.turns):
                        rates = {
                            way: way.rate(given.seconds)
                            for way in ((ray, plain) if turn % 2 else (plain, ray))
                        }
                        pairs.append((rates[plain], rates[ray]))
                logs = [math.log(theirs / own) for own, theirs in pairs]
                ratio, error = statistics.mean(logs), 1.96 * statistics.stdev(logs) / math.sqrt(len(logs))
                low, high = math.exp(ratio - error), math.exp(ratio + error)
                own, theirs = (statistics.median(rates) for rates in zip(*pairs, strict=True))
                print(
                    f"{name}, {workers} worker{'s' * (workers > 1)}: plain {own:.1f} steps/s, Ray {theirs:.1f}; ",
                    end="",
                )
                print(
                    f"ratio {math.exp(ratio):.3f} ({low:.3f} to {high:.3f}) over {len(logs)} pairs",
                    flush=True,
                )


if __name__ == "__main__":
    main()
