"""Measure the scaling with workers, the start time on a cluster, and parallel stages, on digits.

    python benchmarks/scaling.py --workers 1 2 4   numbers of workers; a training killed on 2, resumed on 1
    python benchmarks/scaling.py --start           time to the first step of 2 workers on a cluster
    python benchmarks/scaling.py --jobs            `darkroom repro --jobs 4` compared with serial stages

Options: [--models cnn vae] [--steps N] [--rounds N]. The alternatives run in turn in each round. Figures are
medians over the rounds, ratios are medians of each round's ratio. Workers have one thread each and run on a
local head node that is configured with 8 CPUs, whatever the machine has. images/s is measured by the loop, in
the second half of the steps.
"""

import argparse
import signal
import statistics
import sys
import tempfile
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import yaml
from harness import BIN, ROOT, Figures, cluster, compare, digits, dvc_project, kill_workers, project, run

from pipeline.core import model_files
from pipeline.core.dataset import Dataset
from pipeline.core.metrics_log import read
from pipeline.core.noise import Noise
from pipeline.core.settings import read_training

RATE = "system/images_per_second"
FIRST: dict = {}  # the first weights and dvc.lock; later ones are compared with them


@torch.no_grad()
def figures(name: str, folder: Path, workers: int) -> Figures:
    """The speed and the metrics of the training in ``folder``."""
    lines = read(folder / "history" / name / "metrics.jsonl")
    rate = statistics.median(
        line["metrics"][RATE]
        for line in lines
        if RATE in line["metrics"] and line["step"] > lines[-1]["step"] / 2
    )
    weights, test = (
        model_files.load(folder / "models" / name),
        Dataset.open(folder / "data/processed/images").test,
    )
    batch, first = test.batch(np.arange(len(test))), FIRST.setdefault(name, weights.state_dict())
    values = weights.evaluate(batch, Noise.whole(0, len(batch), "test"))
    difference = max(float((value - first[key]).abs().max()) for key, value in weights.state_dict().items())
    measured = {
        f"test {key}": float(value.mean())
        for key, value in values.items()
        if key in ("accuracy", "negative_elbo", "mse")
    }
    return {
        "images/s and worker": rate / workers,
        "images/s": rate,
        "largest difference of weights": difference,
        **measured,
    }


def on_ray(name: str, base: Path, variables: dict[str, str], workers: int, killed_on: int = 0) -> Figures:
    """Train on Ray workers.

    ``killed_on``: first train half of the steps on so many workers, and kill them.
    """
    folder, command = project(base), ("-m", "stages.train", name)
    half = read_training(name, model_files.find(name).Config, base / "params.yaml")[0].num_steps / 2
    if killed_on:
        records = lambda: [
            line["step"] for path in folder.glob(".darkroom/trainings/*/metrics.jsonl") for line in read(path)
        ]
        run(
            folder,
            *command,
            until=lambda: max(records(), default=0) >= half,
            **variables,
            DARKROOM_WORKERS=str(killed_on),
        )
        kill_workers(base.parent / "ray")
        if any(folder.glob(".darkroom/trainings/*/finished.json")):
            sys.exit(f"{name} ended before it was killed: use more --steps")
    run(folder, *command, **variables, DARKROOM_WORKERS=str(workers))
    return figures(name, folder, workers)


def start(name: str, base: Path, variables: dict[str, str]) -> Figures:
    """Seconds until both workers have finished each part of the start, and those of Ray Train alone."""
    folder, more = project(base), {**variables, "DARKROOM_WORKERS": "2"}
    began = time.time()
    run(folder, str(ROOT / "benchmarks/bare.py"), str(folder / "bare"), **variables)
    alone = _ends(folder / "bare")["first step"] - began
    run(folder, str(ROOT / "benchmarks/marks.py"), str(time.time()), str(folder / "marks"), name, **more)
    last = _ends(folder / "marks")
    total = last["first step"] - last["spawned"]
    parts = {b: last[b] - last[a] for a, b in pairwise(last)}
    return {
        "from spawning to the first step": total,
        "Ray Train by itself": alone,
        "ratio": total / alone,
        **parts,
    }


def _ends(path: Path) -> dict[str, float]:
    """When both workers had finished each part."""
    ends: dict[str, list[float]] = {}
    for line in path.read_text().splitlines():
        at, part = line.split(" ", 1)
        ends.setdefault(part, []).append(float(at))
    return {part: max(times[:2]) for part, times in ends.items()}


def repro(base: Path, *arguments: str, **variables: str) -> Figures:
    """Run all stages in a new project; compare the hashes in dvc.lock with those of the first run."""
    folder = dvc_project(base)
    seconds = run(folder, str(BIN / "darkroom"), "repro", *arguments, **variables)
    dvc_lock = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    hashes = {
        (stage, each["path"]): each["md5"]
        for stage, entry in dvc_lock.items()
        for kind in ("deps", "outs")
        for each in entry.get(kind, [])
    }
    first = FIRST.setdefault("dvc.lock", hashes)
    differing = {key for key in first.keys() | hashes.keys() if first.get(key) != hashes.get(key)}
    # These outputs contain times, so they always differ.
    times = {key for key in differing if key[1].startswith(("history/", "plots", "reports"))}
    return {
        "seconds": seconds,
        "hashes": len(hashes),
        "differ: with times": len(times),
        "differ: without": len(differing - times),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--workers", nargs="+", type=int)
    mode.add_argument("--start", action="store_true")
    mode.add_argument("--jobs", action="store_true")
    parser.add_argument("--models", nargs="+", choices=["cnn", "vae"], default=["cnn", "vae"])
    parser.add_argument("--steps", type=int, help="of each training, instead of those in params.yaml")
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # to run the cleanup
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        base = digits(Path(temporary), given.steps)
        if given.jobs:
            ways: dict = {"serial": partial(repro, base), "jobs 4": partial(repro, base, "--jobs", "4")}
            ways["serial, 1 thread"] = partial(repro, base, DARKROOM_THREADS="1")
            ways["jobs 4, 1 thread"] = partial(repro, base, "--jobs", "4", DARKROOM_THREADS="1")
            compare("all stages; the threads are those of each training", ways, given.rounds)
            return
        with cluster(base.parent / "ray") as variables:
            for name in given.models:
                if given.start:
                    compare(
                        f"{name}: seconds", {"start": partial(start, name, base, variables)}, given.rounds
                    )
                else:
                    ways = {
                        str(count): partial(on_ray, name, base, variables, count) for count in given.workers
                    }
                    ways["2 -> 1"] = partial(on_ray, name, base, variables, 1, killed_on=2)
                    compare(f"{name}: workers", ways, given.rounds)


if __name__ == "__main__":
    main()
