"""What tracking costs a training: python benchmarks/tracking.py [model ...], in a project after `dvc repro preprocess`.

Trains each model by its own settings, tracked in a new sqlite database. Prints the processor time that delivery took during the
training, in a thread beside it (so the most by which it can slow it down), its share of the training's wall time, and how long
opening the run, registering the model and closing the run took.
"""

import itertools
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import environment as surroundings

surroundings.prepare()

from pipeline.core import model_files  # noqa: E402
from pipeline.core.dataset import Dataset  # noqa: E402
from pipeline.core.settings import read_training  # noqa: E402
from pipeline.launch.training import Training, alone, train  # noqa: E402
from pipeline.tracking import runs  # noqa: E402
from pipeline.tracking.system import SystemMetrics  # noqa: E402


def measure(name: str, folder: Path) -> None:
    """Train one model in ``folder`` and print what tracking took."""
    project = Path.cwd()
    where = replace(
        surroundings.read(),
        storage=folder,
        tracking_uri=f"sqlite:///{folder}/mlflow.db",
        artifacts=str(folder / "artifacts"),
    )
    settings, config = read_training(name, model_files.find(name).Config)
    training = Training(name, settings, config, Dataset.open(Path("data/processed").resolve()))
    os.chdir(folder)  # away from the project's own history, which a new database would be told first
    spent: list[float] = []
    kept = runs.delivery.deliver, runs.sync

    def timed(function: Any) -> Any:
        def run(*given: Any, **named: Any) -> Any:
            began = time.thread_time()
            answer = function(*given, **named)
            spent.append(time.thread_time() - began)
            return answer

        return run

    runs.delivery.deliver, runs.sync = timed(kept[0]), timed(kept[1])
    marks = [time.perf_counter()]
    with alone(training, where):
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
    print(
        f"{name}: training {trained:.1f} s, delivery {during:.3f} s of processor time: {during / trained:.2%}; "
        f"open {opened:.2f} s, register {registered:.2f} s, close {closed:.2f} s"
    )


if __name__ == "__main__":
    for model in sys.argv[1:] or model_files.names():
        with tempfile.TemporaryDirectory() as beside:
            measure(model, Path(beside))
