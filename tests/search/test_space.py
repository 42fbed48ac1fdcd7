"""What is searched: all faults are named before anything is trained, and the grid has all points once."""

import re

import pytest
import yaml

from pipeline.errors import BadInput
from pipeline.search.space import corners, grid, params_of, read_search, settings_of
from pipeline.settings_check import require_valid_params
from tests.search.conftest import DROPOUT, RATE, SHIFT, SPACE, searched
from tests.test_walls import ROOT


def with_space(project, settings, **more):
    project.params["search"] = {"cnn": {**SPACE, **more, "settings": settings}}
    project.write()


@pytest.mark.parametrize(
    ("setting", "fault"),
    [
        ({"low": 2, "high": 1}, "low 2 is above high 1"),
        ({"low": 0, "high": 1, "log": True}, "log needs a low above 0, not 0"),
        ({"low": 1}, "it needs choices, or low and high"),
        ({"low": 1, "high": 2, "choices": [3]}, "it has choices and a range"),
        ({"choices": [1, 1]}, "two choices are the same"),
        ({"low": 1, "high": 9, "log": True, "step": 2}, "log and step exclude each other"),
        ({"low": 1, "hihg": 2}, "did you mean 'high'"),
        ({"choices": [0.1], "when": {"cnn.model.loss": "mse"}}, "which is not listed before it"),
        ({"choices": [0.1], "when": {DROPOUT: 0.7}}, "0.7, which is not one of its choices"),
    ],
)
def test_a_setting_that_cannot_be_searched_is_refused_by_every_stage(project, setting, fault):
    with_space(project, {DROPOUT: {"choices": [0.0, 0.2]}, SHIFT: setting})
    with pytest.raises(BadInput) as caught:
        require_valid_params()
    assert fault in str(caught.value) and "search.cnn" in str(caught.value)


def test_all_values_that_the_model_refuses_are_named_at_once(project):
    settings = {
        DROPOUT: {"choices": [0.0, 1.5]},
        "cnn.model.optimiser.kind": {"choices": ["adam"]},
        "cnn.model.loss": {"choices": ["mse", "hinge"]},
        "cnn.training.batch_size": {"low": 0, "high": 16},
    }
    with_space(project, settings)
    with pytest.raises(BadInput) as caught:
        read_search("cnn")
    for part in ("cnn.model.dropout", "did you mean 'optimizer'", "cnn.model.loss", "training.batch_size"):
        assert part in str(caught.value)


def test_choices_that_do_not_fit_together_are_found(project):
    with_space(
        project,
        {
            "cnn.model.architecture": {"choices": ["article", "fast"]},
            "cnn.model.dense": {"choices": [[16], [8, 8]]},
        },
    )
    with pytest.raises(BadInput, match="dense"):
        read_search("cnn")


def test_a_condition_keeps_choices_apart_that_do_not_fit(project):
    dense = {"choices": [[16], [8, 8]], "when": {"cnn.model.architecture": "article"}}
    with_space(
        project,
        {"cnn.model.architecture": {"choices": ["article", "fast"]}, "cnn.model.dense": dense},
    )
    search = read_search("cnn")
    points = [settings_of(search, point) for point in grid(search, project.params)]
    assert points == [
        {"cnn.model.architecture": "article", "cnn.model.dense": [16]},
        {"cnn.model.architecture": "article", "cnn.model.dense": [8, 8]},
        {"cnn.model.architecture": "fast"},
    ]
    assert "dense" not in params_of(search, project.params, points[2])["cnn"]["model"]  # its default


def test_settings_of_other_sections_and_the_seed_are_refused(project):
    with_space(project, {"vae.model.beta": {"choices": [1.0]}, "cnn.training.seed": {"low": 0, "high": 3}})
    with pytest.raises(BadInput, match=r"vae.model.beta: is not a setting of cnn; cnn.training.seed: cannot"):
        require_valid_params()


@pytest.mark.parametrize(
    ("metric", "fault"),
    [("test/accuracy", "one of the validation split"), ("validation/a", "mode is missing")],
)
def test_a_metric_of_another_split_or_without_a_mode_is_refused(project, metric, fault):
    project.params["search"] = {"cnn": {**SPACE, "metric": metric, "mode": None}}
    project.write()
    with pytest.raises(BadInput, match=fault):
        require_valid_params()


def test_the_metric_is_by_default_the_monitored_one(project):
    project.params["search"] = {"cnn": {"settings": SPACE["settings"]}}
    project.write()
    assert (read_search("cnn").metric, read_search("cnn").mode) == ("validation/loss", "min")
    project.params["cnn"]["training"] |= {"monitor": "validation/accuracy", "monitor_mode": "max"}
    project.write()
    assert (read_search("cnn").metric, read_search("cnn").mode) == ("validation/accuracy", "max")


def test_a_grid_has_steps_or_evenly_spaced_points(project):
    whole = {"low": 8, "high": 32, "step": 8}
    rate = {"low": 1e-4, "high": 1e-2, "log": True, "num_points": 3}
    with_space(project, {"cnn.training.batch_size": whole, RATE: rate})
    points = [*grid(read_search("cnn"), project.params)]
    assert [point["cnn.training.batch_size"] for point in points[::3]] == [8, 16, 24, 32]
    assert all(isinstance(point["cnn.training.batch_size"], int) for point in points)
    assert [point[RATE] for point in points[:3]] == [1e-4, 1e-3, 1e-2]


def test_each_choice_and_each_end_is_tried_before_a_search(project):
    with_space(project, {f"cnn.model.{name}": {"low": 0.0, "high": 0.1} for name in "abcdefgh"})
    project.params["search"]["cnn"]["settings"][DROPOUT] = {"choices": [number / 40 for number in range(30)]}
    project.write()
    with pytest.raises(BadInput):  # a to h are no settings
        read_search("cnn")
    from pipeline.search.settings import read

    tried = corners(read("cnn"))
    assert len(tried) < 64
    assert len({point[DROPOUT] for point in tried}) == 30
    assert {point["cnn.model.h"] for point in tried} == {0.0, 0.1}


def test_the_shipped_spaces_are_valid(monkeypatch):
    monkeypatch.chdir(ROOT)
    shipped = yaml.safe_load((ROOT / "params.yaml").read_text())["search"]
    assert {"cnn", "gan", "vae"} <= shipped.keys()
    assert all(read_search(name).settings for name in shipped)


def test_the_documented_space_is_valid(tmp_path):
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    shown = next(
        text
        for text in re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/experiments.md").read_text(), re.S)
        if "search:" in text
    )
    params["search"] = yaml.safe_load(shown)["search"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    search = read_search("cnn", tmp_path / "params.yaml")
    assert any("cnn.model.focal_gamma" in point for point in corners(search))


def test_a_batch_that_is_larger_than_the_data_fails_its_trial_and_no_other(project, trained):
    with_space(project, {"cnn.training.batch_size": {"choices": [100_000, 16]}})
    states = {trial.settings["cnn.training.batch_size"]: trial.state for trial in searched(2).trials}
    assert states == {100_000: "fail", 16: "complete"}
