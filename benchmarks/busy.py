"""Measure the speed of a training on a busy machine, for several settings of OpenMP.

    python benchmarks/busy.py [--models cnn] [--rounds 3] [--seconds 5] [--spins 300000 10000 1000 0]

GNU OpenMP's threads wait for each other at barriers: first they spin, then they sleep. A thread that spins
while another has no core takes its time. The columns are Darkroom's setting and values of GOMP_SPINCOUNT:
300000 is libgomp's default, 0 the same as OMP_WAIT_POLICY=PASSIVE. The rows are steps/s alone, with one busy
process, and the sum of two trainings at the same time. Digits with the settings of params.yaml.
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

from harness import compare, digits, environment

WARM_SECONDS, LIMIT_SECONDS = 5.0, 120  # a busy machine is noticed within two seconds


def measure(base: Path, model: str, seconds: float, variables: dict[str, str]) -> dict[str, float]:
    """Steps/s of a training alone, with a busy neighbour, and of two trainings together."""
    (alone,) = trainings(base, model, seconds, variables, 1)
    with_neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        (busy,) = trainings(base, model, seconds, variables, 1)
    finally:
        with_neighbour.kill()
        with_neighbour.wait()
    pair = trainings(base, model, seconds, variables, 2)
    return {"alone": alone, "with a busy neighbour": busy, "two trainings": sum(pair)}


def trainings(base: Path, model: str, seconds: float, variables: dict[str, str], count: int) -> list[float]:
    """Steps/s of each of ``count`` trainings that run at the same time."""
    command = [sys.executable, __file__, "--child", str(base), model, str(seconds)]
    processes = [
        subprocess.Popen(command, env=environment(variables), stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    timer = threading.Timer(LIMIT_SECONDS, lambda: [process.kill() for process in processes])
    timer.start()
    try:
        return [float(process.stdout.readline()) for process in processes]
    finally:
        timer.cancel()
        for process in processes:
            process.kill()
            process.wait()


def child(base: Path, model: str, seconds: float) -> None:
    """Print the steps/s of the ``seconds`` after those of warming up, and train until it is killed."""
    import torch

    from pipeline.core import model_files
    from pipeline.core.dataset import Dataset
    from pipeline.core.determinism import make_deterministic
    from pipeline.core.loop import Loop
    from pipeline.core.settings import read_training
    from pipeline.openmp import short_waits_if_busy
    from pipeline.process import keep_freed_memory

    make_deterministic(torch.get_num_threads())
    keep_freed_memory()
    settings, config = read_training(model, model_files.find(model).Config, base / "params.yaml")
    data = Dataset.open(base / "data/processed/images")
    loop = Loop(model_files.build(model, config, data.spec, settings.seed), data, settings, base / "none")
    begun, first = time.perf_counter(), 0
    with short_waits_if_busy():
        for number in itertools.count(1):
            loop.step.run(number, *loop._batch(number))
            loop.average.update(number)
            now = time.perf_counter() - begun
            if not first and now > WARM_SECONDS:
                first, since = number, now
            elif first > 0 and now > since + seconds:
                print((number - first) / (now - since), flush=True)
                first = -1  # printed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--models", nargs="+", default=["cnn"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--spins", nargs="*", default=["300000", "10000", "1000", "0"])
    arguments = parser.parse_args()
    if arguments.child:
        base, model, seconds = arguments.child
        return child(Path(base), model, float(seconds))
    settings = {"darkroom": {}} | {f"spin {count}": {"GOMP_SPINCOUNT": count} for count in arguments.spins}
    with tempfile.TemporaryDirectory() as folder:
        base = digits(Path(folder), None)
        for model in arguments.models:
            ways = {
                label: partial(measure, base, model, arguments.seconds, variables)
                for label, variables in settings.items()
            }
            compare(f"{model}, steps/s", ways, arguments.rounds)


if __name__ == "__main__":
    main()
