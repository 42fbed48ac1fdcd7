"""A training and its measurement in this process, without a DVC experiment."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.core import model_files
from pipeline.core.dataset import Dataset
from pipeline.core.fields import PROCESSED
from pipeline.core.memory_format import use_channels_last
from pipeline.core.settings import read_training
from pipeline.environment import Environment
from pipeline.evaluation.evaluate import evaluate, protocol_of
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.files import digest_of
from pipeline.launch.tracked import tracked
from pipeline.launch.training import Training, remove_old_trainings
from pipeline.params import as_file, read_section
from pipeline.tracking import delivery_queue, lineage, runs
from pipeline.tracking.rerun import leaves


def train_and_measure(environment: Environment, name: str, params: Mapping[str, Any]) -> None:
    """Train the model ``name`` with ``params``, the whole params.yaml, and measure it alone.

    The other models, such as the classifier whose features compare images, are those in models/. Nothing is
    written to the workspace. Raises ``DarkroomError`` if the training or the measurement fails.
    """
    kind, project = model_files.find(name), leaves(params)
    settings, config = as_file(params, lambda file: read_training(name, kind.Config, file))
    data = Dataset.open(PROCESSED / kind.dataset)
    training = Training(name, settings, config, data, {need: Path("models", need) for need in kind.needs})
    with tracked(training, environment, described={"project": project, "parent": ()}) as (outcome, run):
        run.register(model := outcome.folder / "model", name)
    others = [Path("models", other) for other in lineage.trained_models(Path()) if other != name]
    folders = {folder.name: folder for folder in others if (folder / model_files.CARD).exists()}
    _measure(environment, params, {name: data}, folders | {name: model})
    remove_old_trainings(environment, name, delivery_queue.undelivered_folders(environment))


def _measure(
    environment: Environment,
    params: Mapping[str, Any],
    opened: Mapping[str, Dataset],
    folders: Mapping[str, Path],
) -> None:
    """Evaluate the model of ``opened`` (its data set, by its name) and log the results to MLflow."""
    ((name, data),) = opened.items()
    settings = as_file(params, lambda file: read_section("evaluate", EvaluationSettings, file))
    shown, device = json.loads(settings.model_dump_json()), environment.torch_device
    tasks = {other: model_files.load(folder, device) for other, folder in folders.items()}
    tasks = {other: task for other, task in tasks.items() if task.dataset == tasks[name].dataset}
    for task in tasks.values():
        use_channels_last(task)  # as in the training
    digests = {other: model_files.digest(folders[other]) for other in tasks}
    description = runs.Description(
        "evaluate",
        digest_of([shown, data.digest, digests]),
        shown,
        data.source,
        data.digest,
        data.folder.as_posix(),
        {"device": device, "test_images": len(data.test)},
        leaves(params),
        (),
    )
    with runs.open_run(environment, description) as run, tempfile.TemporaryDirectory() as temporary:
        metrics, plots, none = (Path(temporary, each) for each in ("metrics", "plots", "history"))
        datasets = {tasks[name].dataset: data}
        results = evaluate(settings, datasets, tasks, digests, history=none, metrics=metrics, plots=plots)
        cards = {name: model_files.read_card(folders[name])}
        run.log_results({name: results[name]}, cards, {name: digest_of(protocol_of(results, name))})
        run.log_artifact(metrics / "details.json")
