"""A training that is an MLflow run."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.environment import Environment
from pipeline.launch.plan import trains_in_process
from pipeline.launch.progress import Progress
from pipeline.launch.training import Listener, Outcome, Training, train, training_lock
from pipeline.tracking import runs
from pipeline.tracking.restored import RESOURCES
from pipeline.tracking.system import SystemMetrics


@contextmanager
def tracked(
    training: Training,
    environment: Environment,
    model: Path | None = None,
    history: Path | None = None,
    listeners: tuple[Listener, ...] = (),
    described: Mapping[str, Any] | None = None,
) -> Iterator[tuple[Outcome, runs.Run]]:
    """Run ``training`` as ``train`` does; the block gets the outcome and the run, which ends with the block.

    ``described``: further fields of the run's ``Description``.
    """
    training.require_examples()
    name, settings, data = training.name, training.settings, training.data
    description = runs.Description(
        stage=f"train-{name}",
        fingerprint=training.fingerprint,
        params={
            "training": json.loads(settings.model_dump_json()),
            "model": json.loads(training.config.model_dump_json()),
        },
        data_name=data.source,
        data_digest=data.digest,
        data_source=data.folder.as_posix(),
        **(described or {}),
    )
    with training_lock(training, environment):
        has_workers = not trains_in_process(environment)
        delay = runs.STARTING_SECONDS if has_workers else 0.0
        with runs.open_run(environment, description, delay) as run:  # in the background, during the training
            progress = Progress(name, settings.num_steps, settings.batch_size, has_workers)
            listening: list[Listener] = [progress, SystemMetrics(), run.follow, *listeners]
            run.write_run_file(training.folder(environment.storage))  # before train() records the hashes
            outcome = train(training, environment, model, history, listening)
            run.follow(outcome.folder)  # MLflow may not have the metrics of an already finished training
            run.tag({key: outcome.times.get(key, "") for key in RESOURCES})
            yield outcome, run
