"""`evaluate.models` chooses what is measured."""

import pytest

from pipeline.errors import BadInput
from tests.evaluation.conftest import SETTINGS, run


def test_the_chosen_models_alone_are_measured_with_the_same_numbers(dataset, tasks, tmp_path):
    everything = run(dataset, tasks, tmp_path / "all")
    chosen = SETTINGS.model_copy(update={"models": ("gan",)})
    found = run(dataset, tasks, tmp_path / "one", chosen)
    assert set(found) & set(tasks) == {"gan"} and found["gan"] == everything["gan"]
    assert found["protocol"] == {"gan": everything["protocol"]["gan"]}


def test_a_chosen_model_that_is_not_there_is_refused(dataset, tasks, tmp_path):
    with pytest.raises(BadInput, match=r"evaluate\.models: no trained model 'gam'\n.*'gan'"):
        run(dataset, tasks, tmp_path, SETTINGS.model_copy(update={"models": ("gam",)}))
