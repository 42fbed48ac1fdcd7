"""`evaluate.models` chooses what is measured."""

import pytest

from pipeline.core import model_files
from pipeline.errors import BadInput
from pipeline.retraining.champion_challenger import _measure
from tests.evaluation.conftest import SETTINGS, run, world


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
