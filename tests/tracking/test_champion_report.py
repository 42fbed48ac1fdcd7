"""What a working tree changes, against the champions in MLflow."""

import json
import shutil

from pipeline.core import model_files
from pipeline.core.settings import read_training
from pipeline.pull_request.baseline import results_in
from pipeline.pull_request.report import write
from pipeline.tracking import registry
from pipeline.tracking.run_description import flatten
from tests.pull_request.conftest import committed, interval, project

__all__ = ["committed", "project"]


def test_the_champions_are_compared_by_their_results_in_mlflow(project, empty_database):
    client = register_champion(project, empty_database)
    project.measures["cnn"]["accuracy"] = interval(0.8, 0.02)
    project.params["cnn"]["training"]["num_steps"] = 200
    project.write()
    text = write(project.environment, "champion")
    assert "## Models here against the champions\n" in text and "Champions: `cnn/1`." in text
    assert "- `cnn` is **worse**: Accuracy ↑\n" in text and "- `gan`: only here\n" in text
    assert "| `cnn.training.num_steps` | `100` | `200` |" in text and "training.seed" not in text
    client.delete_registered_model_alias("cnn", "champion")
    assert "Champions: none." in write(project.environment, "champion")


def register_champion(project, database):
    """Register the results in ``project`` as those of cnn/1."""
    from mlflow import MlflowClient

    shutil.copy(database, project.root)
    client = MlflowClient(project.environment.tracking_uri)
    experiment = client.create_experiment("darkroom", artifact_location=(project.root / "artifacts").as_uri())
    settings, config = read_training("cnn", model_files.find("cnn").Config, project.root / "params.yaml")
    sections = (("training", settings), ("model", config))
    params = flatten({name: json.loads(section.model_dump_json()) for name, section in sections})
    run = client.create_run(experiment, tags={"darkroom.data": "d" * 64})
    for key, value in params.items():
        client.log_param(run.info.run_id, key, value)
    results = results_in((project.root / "metrics/details.json").read_text())["cnn"].numbers
    stored = {
        protocol: {name: each.to_json() for name, each in numbers.items()}
        for protocol, numbers in results.items()
    }
    client.create_registered_model("cnn")
    tags = {registry.RESULTS: json.dumps(stored)}
    client.create_model_version("cnn", (project.root / "artifacts").as_uri(), run.info.run_id, tags=tags)
    client.set_registered_model_alias("cnn", "champion", "1")
    return client
