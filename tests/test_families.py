"""Models of other kinds than images with a label: clips, masks, tokens, in a whole project."""

import json
import os
import random
import shutil
import signal

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from pipeline.core import metrics_log, model_files
from pipeline.files import read_json, sha256
from tests.project import ROOT
from tests.repository import commit, create, read_yaml, shell, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SHIPPED = read_yaml(ROOT / "dvc.yaml")
MEASURES = {"rcnn": "frame_mse", "unet": "mean_iou", "vqvae": "psnr", "transformer": "fid"}
TRAINING = {
    "num_steps": 24,
    "batch_size": 16,
    "ema_decay": 0.9,
    "log_every": 4,
    "validate_every": 8,
    "sample_every": 24,
    "checkpoint_every": 6,
}
BEST = {"keep": "best", "monitor": "validation/mean_iou", "monitor_mode": "max"}
MORE = {
    "clips": {"num_train": 80, "num_validation": 20, "num_test": 30, "num_frames": 4},
    "scenes": {"num_train": 80, "num_validation": 20, "num_test": 30},
    "rcnn": {"training": TRAINING, "model": {"width": 8}},
    "unet": {"training": TRAINING | BEST, "model": {"width": 8, "depth": 2}},
    "vqvae": {"training": TRAINING, "model": {"width": 8, "num_codes": 16}},
    "transformer": {"training": TRAINING, "model": {"width": 16, "depth": 1}},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project of the classifier and these models, after ``dvc repro``."""
    folder = create(tmp_path_factory.mktemp("families") / "project", **MORE)
    plan, shipped = read_yaml(folder / "dvc.yaml"), SHIPPED["stages"]
    for name in MEASURES:
        code = model_files.code_path(name, ROOT / "pipeline")
        shutil.copytree(code, folder / code.relative_to(ROOT))
    added = {"compose-clips", "compose-scenes", *(f"train-{name}" for name in MEASURES)}
    plan["stages"] |= {name: stage for name, stage in shipped.items() if name in added}
    (folder / "dvc.yaml").write_text(json.dumps(plan))
    commit(folder, "other families")
    shell(folder, "python", "dvc", "repro")
    return folder


def test_they_are_measured_and_reported_with_their_own_measures(project):
    details = read_json(project / "metrics/details.json")
    for name, measure in MEASURES.items():
        assert measure in details[name], details[name].keys()
    assert 0 < details["unet"]["mean_iou"]["value"] <= 1
    page = (project / "reports/index.html").read_text()
    for name in MEASURES:
        assert name in page and list((project / f"history/{name}/samples").glob("*.png"))


def test_dvcs_charts_find_their_curves(project):
    charts = [chart for plot in SHIPPED["plots"] if isinstance(plot, dict) for chart in plot.values()]
    paths = [path for chart in charts for path in chart["y"]]
    for name in MEASURES:
        own = [project / path for path in paths if path.startswith(f"plots/curves/{name}/")]
        assert own and all(path.is_file() for path in own), name


def test_they_are_tracked_registered_and_traced(project):
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name != 'Default'")
    runs = {run.info.run_name for run in client.search_runs([experiment.experiment_id])}
    for name in MEASURES:
        assert client.get_model_version(name, "1").run_id
        assert any(run_name.startswith(f"train-{name}") for run_name in runs), runs
    traced = shell(project, "darkroom", "trace", "models/transformer")
    assert "models/vqvae" in traced and "data/processed/images" in traced
    assert "data/processed/clips" in shell(project, "darkroom", "trace", "models/rcnn")
    shell(project, "darkroom", "verify")


def test_the_command_uses_those_that_can_do_what_it_asks(project):
    shell(project, "darkroom", "generate", "transformer", "--count", "4")
    refusal = shell(project, "darkroom", "generate", "rcnn", code=2)
    assert "rcnn" in refusal and "Traceback" not in refusal


@pytest.mark.parametrize(
    "name",
    [name if name == "unet" else pytest.param(name, marks=pytest.mark.nightly) for name in MEASURES],
)
def test_a_killed_training_ends_with_the_same_weights(project, name):
    model = project / "models" / name
    expected, seed = sha256(model / "model.safetensors"), random.SystemRandom().randrange(10**6)
    last = random.Random(seed).randrange(2, TRAINING["num_steps"])
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
@pytest.mark.nightly
@pytest.mark.parametrize("name", MEASURES)
def test_two_ray_workers_train_the_same_model(project, tmp_path, name):
    expected = load_file(project / "models" / name / "model.safetensors")
    copy = tmp_path / "copy"
    shutil.copytree(project, copy, ignore=shutil.ignore_patterns(".darkroom", ".git"))
    shell(copy, "python", "stages.train", name, DARKROOM_WORKERS="2", DARKROOM_THREADS="1")
    found = load_file(copy / "models" / name / "model.safetensors")
    for key, value in expected.items():
        assert torch.allclose(value.float(), found[key].float(), atol=2e-3, rtol=0), key
