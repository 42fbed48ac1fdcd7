"""Measure the cost of tracking: python benchmarks/tracking.py [model ...], after `dvc repro preprocess`.

Trains each model with its settings, tracked in a new SQLite database. Prints the processor time of the
delivery thread during the training (an upper bound of the slowdown), its share of the training's wall time,
and the time to open the run, register the model and close the run.
"""

import itertools
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import environment

environment.prepare()

from pipeline.core import model_files  # noqa: E402
from pipeline.core.dataset import Dataset  # noqa: E402
from pipeline.core.settings import read_training  # noqa: E402
from pipeline.launch.training import Training, train, training_lock  # noqa: E402
from pipeline.tracking import runs  # noqa: E402
from pipeline.tracking.system import SystemMetrics  # noqa: E402


def measure(name: str, folder: Path) -> None:
    """Train one model in ``folder`` and print the cost of tracking."""
    project = Path.cwd()
    where = replace(
        environment.read(),
        storage=folder,
        tracking_uri=f"sqlite:///{folder}/mlflow.db",
        artifacts=str(folder / "artifacts"),
    )
    settings, config = read_training(name, model_files.find(name).Config)
    training = Training(name, settings, config, Dataset.open(Path("data/processed/images").resolve()))
    os.chdir(folder)  # otherwise the project's history would be sent to the new database first
    spent: list[float] = []
    kept = runs.delivery.deliver, runs.sync

    def timed(function: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.thread_time()
            result = function(*args, **kwargs)
            spent.append(time.thread_time() - began)
            return result

        return run

    runs.delivery.deliver, runs.sync = timed(kept[0]), timed(kept[1])
    marks = [time.perf_counter()]
    with training_lock(training, where):
        run = runs.open_run(
            where,
            runs.Description(
                f"train-{name}", training.fingerprint, {}, training.data.source, training.data.digest
            ),
        )
        with run:
            marks.append(time.perf_counter())
            spent.clear()
            outcome = train(
                training, where, folder / "model", folder / "history", [SystemMetrics(), run.follow]
            )
            during = sum(spent)
            marks.append(time.perf_counter())
            run.register(outcome.folder / "model", name)
            marks.append(time.perf_counter())
        marks.append(time.perf_counter())
    runs.delivery.deliver, runs.sync = kept
    os.chdir(project)
    opened, trained, registered, closed = (later - earlier for earlier, later in itertools.pairwise(marks))
    share = f"{during:.3f} s of processor time ({during / trained:.2%})"
    calls = f"open {opened:.2f} s, register {registered:.2f} s, close {closed:.2f} s"
    print(f"{name}: training {trained:.1f} s, delivery {share}; {calls}")


if __name__ == "__main__":
    for model in sys.argv[1:] or model_files.names():
        with tempfile.TemporaryDirectory() as temporary:
            measure(model, Path(temporary))
