"""`darkroom search` and `darkroom search apply` with real trainings."""

import re
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from ruamel.yaml import YAML

from pipeline import environment
from pipeline.core import model_files
from pipeline.core.dataset import Dataset, Split
from pipeline.errors import BadInput
from pipeline.evaluation.kernel import kernel_distance
from pipeline.leaderboard import trainings
from pipeline.params import read_file
from pipeline.search import generation
from pipeline.search.search import Search
from pipeline.search.space import read_search
from pipeline.search.trials import Budget, run
from tests.command import darkroom
from tests.search.conftest import DROPOUT, RATE, by_number, searched

ROOT = Path(__file__).parents[2]
PARAMS = """\
cnn:
  training: {num_steps: 12, batch_size: 32, validate_every: 4, checkpoint_every: 4}
  model:
    channels: [8, 8] # a comment that stays
    dense: [16]
    dropout: 0.0
    optimizer: {kind: adam, learning_rate: 1.0e-5}
search:
  cnn:
    metric: validation/cross_entropy
    mode: min
    settings:
      cnn.model.optimizer.learning_rate: {low: 1.0e-3, high: 1.0e-2, log: true} # of Adam
      cnn.model.dropout: {choices: [0.1, 0.2]}
"""


@pytest.fixture
def commanded(project, monkeypatch):
    """The project with comments in its params.yaml, and data that are up to date."""
    (project.folder / ".dvc").mkdir()
    (project.folder / "dvc.yaml").write_text("stages: {}\n")
    (project.folder / "params.yaml").write_text(PARAMS)
    monkeypatch.setattr(trainings, "repro", lambda *arguments: None)
    return project.folder


def runs_of(folder, condition):
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    return [
        run
        for each in client.search_experiments()
        for run in client.search_runs([each.experiment_id], condition)
    ]


def test_a_search_without_the_test_split_has_the_same_result(project, processed_digits):
    before = by_number(searched(2, num_seeds=2))
    data = project.folder / "data/processed/images"
    shutil.rmtree(project.folder / ".darkroom")
    for path in (data / "test").glob("*.npy"):
        path.write_bytes(b"damaged") if "labels" in path.name else path.unlink()
    with pytest.raises(BadInput, match="is missing or differs"):
        Dataset.open(data)
    assert by_number(searched(2, num_seeds=2)) == before
    assert {state for state, *_ in before} == {"complete"} and len(before[0][2]) == 2


def test_a_search_is_one_run_with_its_trainings_and_a_page(commanded):
    code, output, error = darkroom("search", "cnn", "--trials", "2", "--seeds", "2")
    assert code == 0, error
    assert "seconds" in output and "Between seeds" in output and "next: darkroom search apply cnn" in output
    [parent] = runs_of(commanded, "tags.`darkroom.stage` = 'search-cnn'")
    children = runs_of(commanded, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert len(children) == 4 and {run.info.status for run in [parent, *children]} == {"FINISHED"}
    assert sorted(run.data.tags["darkroom.trial"] for run in children) == ["0", "0", "1", "1"]
    assert "mlflow.parentRunId" not in parent.data.tags
    values = [run.data.metrics["validation/cross_entropy"] for run in children]
    assert parent.data.metrics["search/best"] == pytest.approx(min(sum(values[:2]), sum(values[2:])) / 2)
    page = (commanded / "searches/cnn.html").read_text()
    outputs = read_file(ROOT / "dvc.yaml")["stages"]["evaluate"]["outs"]
    assert "reports" in outputs and "searches" not in outputs  # else the page would be a change of an output
    assert page.count("data:image/png;base64,") >= 2 and not re.search(r"(src|href)=\"http", page)
    client = MlflowClient(f"sqlite:///{commanded}/mlflow.db")
    assert "cnn.html" in {entry.path for entry in client.list_artifacts(parent.info.run_id)}

    code, output, _ = darkroom("search", "cnn", "--trials", "2", "--seeds", "2")  # nothing is left to do
    assert code == 0 and len(runs_of(commanded, "")) == 5
    assert "images/s" not in output


def test_apply_writes_the_best_settings_and_keeps_comments(commanded):
    code, _, error = darkroom("search", "cnn", "--trials", "3", "--sampler", "random")
    assert code == 0, error
    before = (commanded / "params.yaml").read_text()
    code, shown, _ = darkroom("search", "apply", "cnn", "--dry-run")
    assert code == 0 and "nothing was written" in shown and (commanded / "params.yaml").read_text() == before
    code, shown, error = darkroom("search", "apply", "cnn")
    assert code == 0, error
    assert f"{RATE}: 1e-05 -> " in shown and f"{DROPOUT}: 0.0 -> 0." in shown
    text = (commanded / "params.yaml").read_text()
    assert "# a comment that stays" in text and "# of Adam" in text
    params = YAML(typ="safe", pure=True).load(text)
    best = re.search(rf"{RATE}: 1e-05 -> (\S+)", shown)[1]
    assert params["cnn"]["model"]["optimizer"]["learning_rate"] == float(best)
    assert (
        read_file(commanded / "params.yaml")["search"] == YAML(typ="safe", pure=True).load(before)["search"]
    )
    assert darkroom("search", "apply", "cnn")[1].endswith("params.yaml has these settings already\n")


def test_apply_refuses_a_search_of_other_settings(commanded):
    assert darkroom("search", "cnn", "--trials", "1")[0] == 0
    changed = PARAMS.replace("channels: [8, 8]", "channels: [4, 4]")
    (commanded / "params.yaml").write_text(changed)
    code, _, error = darkroom("search", "apply", "cnn")
    assert code == 2 and "no search has a result with these settings" in error
    assert (commanded / "params.yaml").read_text() == changed


def test_a_dry_run_shows_the_space_and_trains_nothing(commanded):
    code, output, _ = darkroom("search", "cnn", "--dry-run")
    assert code == 0 and "cnn.model.dropout" in output and "20 trials" in output
    assert not (commanded / ".darkroom").exists()


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["vae"], "does not say what to search for 'vae'"),
        (["cnn", "--sampler", "best"], "is not one of"),
        (["cnn", "--trials", "0"], "0 is not in the range"),
    ],
)
def test_what_cannot_be_searched_is_refused(commanded, arguments, fault):
    code, _, error = darkroom("search", *arguments)
    assert code == 2 and fault in error


def test_a_metric_that_the_model_lacks_is_refused_before_a_training(commanded):
    (commanded / "params.yaml").write_text(PARAMS.replace("cross_entropy", "crossentropy"))
    code, _, error = darkroom("search", "cnn")
    assert code == 2 and "validation/accuracy, validation/cross_entropy" in error
    assert not (commanded / ".darkroom/trainings").exists()


def test_the_metric_of_a_model_that_needs_another_is_checked(project, monkeypatch):
    data = Dataset.open(project.folder / "data/processed/images")
    model_files.write(model_files.build("vqvae", {}, data.spec, 0), project.folder / "models/vqvae", {})
    project.params["transformer"] = {"training": {"num_steps": 4}, "model": {}}
    settings = {"transformer.training.batch_size": {"choices": [8, 16]}}
    project.params["search"] = {"transformer": {"settings": settings}}
    project.write()
    with pytest.raises(BadInput, match="no 'validation/loss'") as caught:
        Search(environment.read(), "transformer", read_search("transformer"), 1)
    assert "validation/nats_per_token" in caught.value.remedy


def generator_search(project):
    settings = {"gan.model.latent_size": {"choices": [4, 8]}}
    metric = {"metric": "validation/kernel_distance", "mode": "min", "pruner": "none"}
    project.params["search"] = {"gan": {**metric, "sampler": "grid", "settings": settings}}
    project.params["gan"]["training"] = {"num_steps": 4, "batch_size": 16}
    project.write()
    return lambda: Search(environment.read(), "gan", read_search("gan"), 1)


def test_a_distance_from_two_images_is_refused(project, monkeypatch):
    monkeypatch.setattr(Split, "__len__", lambda split: 2)
    with pytest.raises(BadInput, match="fewer than 3 images"):
        generator_search(project)()


def test_the_distance_is_that_of_2000_generated_images(project, monkeypatch):
    """The digits have fewer images for validation than a batch has."""
    search, counts = generator_search(project)(), list[tuple[int, int]]()
    assert len(search.data.validation) < 256
    task = model_files.build("gan", {}, search.data.spec, 0)
    model_files.write(task, Path("models/gan"), {})

    def count(samples, reference, within):
        counts.append((len(samples), len(reference)))
        return kernel_distance(samples, reference, within)

    monkeypatch.setattr(generation, "kernel_distance", count)
    assert generation.distance(Path("models/gan"), search.data.validation) > 0
    assert counts == [(2000, len(search.data.validation))]


def test_a_generator_is_searched_by_the_distance_of_its_images(project):
    ranking = run(generator_search(project)(), Budget(), Path("searches/gan.html"))
    assert [len(trial.values) for trial in ranking.trials] == [1, 1]
    assert 0 < ranking.trials[0].mean < ranking.trials[1].mean
