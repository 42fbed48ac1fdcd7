"""Models of other kinds than Darkroom's own, each a file, a section and a stage, in a whole project."""

import json
import os
import random
import shutil
import signal

import pytest
import torch
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file

from pipeline.core import metrics_log, model_files
from pipeline.files import read_json, sha256
from tests import toys
from tests.project import PARAMS, ROOT
from tests.repository import commit, create, shell, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
NEEDS = {"toy_probe": ["models/ae"]}
DATASET = {"toy_clip": "clips", "toy_mask": "scenes"}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project of the classifier, the autoencoder and the toy models, after ``dvc repro``."""
    folder = create(tmp_path_factory.mktemp("toys") / "project")
    for path in (toys.FOLDER / "models").glob("*.py"):
        shutil.copy(path, folder / "pipeline/models")
    shutil.copytree(ROOT / "pipeline/models/ae", folder / "pipeline/models/ae")
    shutil.copy(toys.FOLDER / "compose.py", folder / "stages")
    (folder / "params.yaml").write_text(
        json.dumps({**read_yaml(folder / "params.yaml"), **toys.PARAMS, "ae": PARAMS["ae"]})
    )
    plan = read_yaml(folder / "dvc.yaml")
    plan["stages"]["compose"] = {
        "cmd": "python -m stages.compose",
        "deps": ["data/processed/images", "pipeline/core", "pipeline/data/shards.py", "stages/compose.py"],
        "outs": ["data/processed/clips", "data/processed/scenes"],
    }
    for name in ("ae", *toys.NAMES):
        data = f"data/processed/{DATASET.get(name, 'images')}"
        own = model_files.code_path(name, folder / "pipeline").relative_to(folder).as_posix()
        code = ["pipeline/core", "pipeline/layers", own, "stages/train.py"]
        outs = [f"models/{name}", f"history/{name}"]
        plan["stages"][f"train-{name}"] = {
            "cmd": f"python -m stages.train {name}",
            "deps": [data, *NEEDS.get(name, []), *code],
            "params": [name],
            "outs": outs,
        }
        plan["stages"]["evaluate"]["deps"] += [
            out for out in outs if out.split("/")[0] not in plan["stages"]["evaluate"]["deps"]
        ]
    (folder / "dvc.yaml").write_text(json.dumps(plan))
    commit(folder, "the toy models")
    shell(folder, "python", "dvc", "repro")
    return folder


def read_yaml(path):
    return yaml.safe_load(path.read_text())


def test_they_are_measured_and_reported_with_their_own_measures(project):
    details = read_json(project / "metrics/details.json")
    measures = {"toy_clip": "mse", "toy_mask": "mean_iou", "toy_probe": "accuracy", "toy_wgan": "fid"}
    for name, measure in measures.items():
        assert measure in details[name], details[name].keys()
    assert 0 < details["toy_mask"]["mean_iou"]["value"] <= 1
    page = (project / "reports/index.html").read_text()
    assert all(name in page for name in toys.NAMES)
    for name in toys.NAMES:
        assert (
            sorted(path.name for path in (project / f"history/{name}/samples").glob("*.png"))
            or name == "toy_probe"
        )


def test_they_are_tracked_registered_and_traced(project):
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name != 'Default'")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    for name in toys.NAMES:
        assert str(client.get_model_version_by_alias(name, "champion").version) == "1"
        assert any(run_name.startswith(f"train-{name}") for run_name in runs), runs.keys()
    traced = shell(project, "darkroom", "trace", "models/toy_probe")
    assert "models/ae" in traced and "data/processed/images" in traced
    assert "data/processed/clips" in shell(project, "darkroom", "trace", "models/toy_clip")
    shell(project, "darkroom", "verify")


def test_the_command_uses_those_that_can_do_what_it_asks(project):
    shell(project, "darkroom", "generate", "toy_wgan", "--count", "4")
    refusal = shell(project, "darkroom", "generate", "toy_clip", code=2)
    assert "toy_clip" in refusal and "Traceback" not in refusal


@pytest.mark.parametrize(
    "name",
    [name if name == "toy_mask" else pytest.param(name, marks=pytest.mark.nightly) for name in toys.NAMES],
)
def test_a_killed_training_ends_with_the_same_weights(project, name):
    model = project / "models" / name
    expected, seed = sha256(model / "model.safetensors"), random.SystemRandom().randrange(10**6)
    last = random.Random(seed).randrange(2, toys.TRAINING["num_steps"])
    for folder in (project / ".darkroom/trainings").glob(f"{name}-*"):
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    process = start(project, "python", "stages.train", name)
    while (recorded(project, name) or [0])[-1] < last and process.poll() is None:
        pass
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    shell(project, "python", "stages.train", name)
    assert sha256(model / "model.safetensors") == expected, f"killed at step {last} (seed {seed})"


def recorded(project, name):
    files = (project / ".darkroom/trainings").glob(f"{name}-*/metrics.jsonl")
    return [line["step"] for file in files for line in metrics_log.read(file)]


@pytest.mark.cluster
@pytest.mark.parametrize(
    "name",
    [name if name == "toy_probe" else pytest.param(name, marks=pytest.mark.nightly) for name in toys.NAMES],
)
def test_two_ray_workers_train_the_same_model(project, tmp_path, name):
    expected = load_file(project / "models" / name / "model.safetensors")
    copy = tmp_path / "copy"
    shutil.copytree(project, copy, ignore=shutil.ignore_patterns(".darkroom", ".git"))
    shell(copy, "python", "stages.train", name, DARKROOM_WORKERS="2", DARKROOM_THREADS="1")
    found = load_file(copy / "models" / name / "model.safetensors")
    for key, value in expected.items():
        assert torch.allclose(value.float(), found[key].float(), atol=2e-3, rtol=0), key
