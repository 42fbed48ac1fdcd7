"""`evaluate.models` chooses what is measured."""

import json
import shutil

import pytest

from pipeline.core import model_files
from pipeline.core.dataset import Dataset
from pipeline.errors import BadInput, DarkroomError
from pipeline.files import write_json
from pipeline.retraining.champion_challenger import _measure
from pipeline.tracking import runs
from stages.evaluate import main, required
from tests.evaluation.conftest import SETTINGS, run, world
from tests.project import PARAMS, ROOT


def test_the_chosen_models_alone_are_measured_with_the_same_numbers(dataset, tasks, tmp_path):
    everything = run(dataset, tasks, tmp_path / "all")
    chosen = SETTINGS.model_copy(update={"models": ("gan",)})
    found = run(dataset, tasks, tmp_path / "one", chosen)
    assert set(found) & set(tasks) == {"gan"} and found["gan"] == everything["gan"]
    assert found["protocol"] == {"gan": everything["protocol"]["gan"]}


def test_a_chosen_model_that_is_not_there_is_refused(dataset, tasks, tmp_path):
    with pytest.raises(BadInput, match=r"evaluate\.models: no trained model 'gam'\n.*'gan'"):
        run(dataset, tasks, tmp_path, SETTINGS.model_copy(update={"models": ("gam",)}))


def test_a_retraining_measures_all_its_models_whichever_are_chosen(tmp_path):
    data = world()
    configs = {"cnn": {"channels": [4], "dense": [8]}, "gan": {"architecture": "mlp", "width": 8}}
    folders = {name: tmp_path / name for name in configs}
    for name, config in configs.items():
        task = model_files.build(name, config, data.spec, 0).requires_grad_(False)
        model_files.write(task, folders[name], {"class_names": data.class_names})
    chosen = SETTINGS.model_copy(update={"models": ("gan",)})
    measured = _measure(chosen, {"images": data}, folders, folders["cnn"], "cpu")
    assert "accuracy" in measured["cnn"] and "fid" in measured["gan"]


class Opened(Exception):
    """The stage opens its run: everything that it measures is loaded."""


def test_the_stage_needs_no_model_that_is_left_out_and_no_other_data(tmp_path, processed_digits, monkeypatch):
    def stop(environment, description):
        raise Opened(description.data_digest)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "open_run", stop)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    (tmp_path / "data/processed").mkdir(parents=True)
    (tmp_path / "data/processed/images").symlink_to(processed_digits)
    data = Dataset.open(processed_digits)
    for name in ("cnn", "gan", "ae"):
        task = model_files.build(name, PARAMS[name]["model"], data.spec, 0).requires_grad_(False)
        model_files.write(task, tmp_path / "models" / name, {})
    write_json(tmp_path / "models/rcnn/model.json", {"damaged": "and of data that is missing"})
    (tmp_path / "models/ae/model.safetensors").unlink()

    def evaluate(*models):
        (tmp_path / "params.yaml").write_text(json.dumps(PARAMS | {"evaluate": {"models": models}}))
        main()

    with pytest.raises(Opened, match=data.digest):
        evaluate("gan")
    assert required(SETTINGS.model_copy(update={"models": ("unet",)}), ["cnn", "gan", "unet"]) == [
        "cnn",
        "unet",
    ]
    with pytest.raises(BadInput, match=r"models/vae: no trained model here\n.*train-vae"):
        evaluate("gan", "vae")
    with pytest.raises(DarkroomError, match="models/ae"):
        evaluate()  # all models
    shutil.rmtree(tmp_path / "models/cnn")
    with pytest.raises(Opened):  # the evaluation itself refuses images without a space to compare them in
        evaluate("gan")
