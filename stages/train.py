"""The stages ``train-<model>``: train one model with Ray Train and track it with MLflow."""

import sys
from pathlib import Path

from pipeline import environment, process


def main(name: str = "") -> None:
    """Train the model ``name`` on its data set; write models/<name>/ and history/<name>/."""
    from pipeline.core import model_files
    from pipeline.core.dataset import Dataset
    from pipeline.core.fields import PROCESSED
    from pipeline.core.settings import read_training
    from pipeline.core.task import Task
    from pipeline.launch.tracked import tracked
    from pipeline.launch.training import Training, remove_old_trainings
    from pipeline.settings_check import require_valid_params
    from pipeline.tracking import delivery_queue

    kind = model_files.find(name)
    require_valid_params()
    env = environment.read()
    settings, config = read_training(name, kind.Config)
    data = Dataset.open(PROCESSED / kind.dataset)
    if len(data.class_names) == 1 and kind.classify is not Task.classify:
        print(f"{name}: the data has one class, so there is nothing to learn; its weights stay nearly random")
    training = Training(name, settings, config, data, {need: Path("models", need) for need in kind.needs})
    model, history = Path("models", name), Path("history", name)
    with tracked(training, env, model, history) as (outcome, run):
        run.register(outcome.folder / "model", name)
    remove_old_trainings(env, name, delivery_queue.undelivered_folders(env))
    sha256 = model_files.read_card(model)["sha256"]
    total, mode = outcome.times["total"], outcome.times["mode"]
    print(f"{name}: {total:.1f} s ({mode}) -> {model}, weights {sha256[:16]}")


if __name__ == "__main__":
    process.run(main, *sys.argv[1:])
