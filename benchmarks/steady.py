"""Compare the steady-state speed of Ray Train with that of the same loop in plain PyTorch processes.

    python benchmarks/steady.py [--models cnn] [--workers 1 2] [--turns 40] [--seconds 3]

The two trainings alternate on the same cores. While one runs for some seconds, all processes of the other,
also Ray's, are stopped (SIGSTOP), so that changes of the machine's speed affect both. Prints the ratio of
steps/s, as the geometric mean over pairs of turns, with its 95 % interval. Digits with the settings of
params.yaml, one thread per worker, a cluster on loopback. Both write metrics and checkpoints and validate;
neither uses MLflow.
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
from harness import ROOT, cluster, digits, environment, nodes, project

WARM_STEPS, START_SECONDS, SETTLE_SECONDS = 500, 120, 0.3


class Way:
    """An endless training in its own processes."""

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
        """Send a signal to all of its processes, including the cluster's."""
        roots = [psutil.Process(self.process.pid), *(nodes(self.ray) if self.ray else [])]
        for root in roots:
            with suppress(psutil.NoSuchProcess):
                for one in {root, *root.children(recursive=True)}:
                    with suppress(psutil.NoSuchProcess):
                        one.send_signal(number)

    def rate(self, seconds: float) -> float:
        """Let it run for ``seconds`` and measure the steps per second, after a moment to settle."""
        self.send(signal.SIGCONT)
        time.sleep(SETTLE_SECONDS)
        first, began = int(self.steps[0]), time.perf_counter()
        time.sleep(seconds)
        taken, passed = int(self.steps[0]) - first, time.perf_counter() - began
        self.send(signal.SIGSTOP)
        return taken / passed


@contextmanager
def running(name: str, base: Path, workers: int, variables: dict[str, str]) -> Iterator[tuple[Way, Way]]:
    """Start both trainings, and stop each after its first steps."""
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
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # to run the cleanup
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        base = digits(Path(temporary), None)
        params = yaml.safe_load((base / "params.yaml").read_text())
        for name in given.models:
            params[name]["training"]["num_steps"] = 100_000_000
        (base / "params.yaml").write_text(yaml.safe_dump(params))
        for name in given.models:
            for workers in given.workers:
                # Ray keeps an idle process for each CPU, which also costs time.
                cpus = max(workers, os.cpu_count() or 1)
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
                label = f"{name}, {workers} worker{'s' * (workers > 1)}"
                result = f"ratio {math.exp(ratio):.3f} ({low:.3f} to {high:.3f}) over {len(logs)} pairs"
                print(f"{label}: plain {own:.1f} steps/s, Ray {theirs:.1f}; {result}", flush=True)


if __name__ == "__main__":
    main()
