"""The trials of a search: none is lost, none is run twice, and hopeless ones end early."""

import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from pipeline.errors import DarkroomError, TrainingStopped
from pipeline.search import page, trials
from pipeline.search import study as studies
from pipeline.search.ranking import noise_of
from pipeline.search.search import Search
from tests.search.conftest import DROPOUT, RATE, SHIFT, by_number, opened, searched

SAMPLERS = ["bayesian", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("random", "grid"))]
PRUNERS = ["median", pytest.param("hyperband", marks=pytest.mark.nightly)]


@pytest.fixture(autouse=True)
def without_charts(monkeypatch):
    """They are drawn in test_command.py. Here they would take most of the time."""
    monkeypatch.setattr(page, "_drawn", lambda *given: "")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_in_parts_has_the_trials_of_a_search_at_once(project, trained, sampler):
    whole = by_number(searched(13, sampler=sampler))
    studies.path_of(opened().environment, "cnn").unlink()
    for number in (1, 2, 7, 13):
        parts = by_number(searched(number, sampler=sampler))
    assert parts == whole and len(whole) == 13
    assert len(set(trained.runs)) == 13  # the second search knew nothing and trained the same


@pytest.mark.parametrize("pruner", PRUNERS)
def test_an_interrupted_search_goes_on_as_if_it_had_not_been(project, trained, pruner):
    whole = by_number(searched(16, num_seeds=2, pruner=pruner))
    count = len(trained.runs)
    studies.path_of(opened().environment, "cnn").unlink()
    interrupted = [[count + number, step] for number, step in ((1, 4), (2, 12), (8, 8), (19, 4), (20, 4))]
    trained.interrupt_at = [[number + extra, step] for extra, (number, step) in enumerate(interrupted)]
    for _ in interrupted:
        with pytest.raises(KeyboardInterrupt):
            searched(16, num_seeds=2, pruner=pruner)
    assert by_number(searched(16, num_seeds=2, pruner=pruner)) == whole
    assert "pruned" in {state for state, *_ in whole} and len(whole) == 16


@pytest.mark.parametrize("pruner", PRUNERS)
def test_a_training_that_finished_before_the_kill_is_pruned_all_the_same(
    project, trained, monkeypatch, pruner
):
    """It ended before the listener could stop it, and the search was killed before it was recorded."""
    how = {"sampler": "random", "pruner": pruner}
    whole = by_number(searched(20, **how))
    number = [state for state, *_ in whole].index("pruned")
    studies.path_of(opened().environment, "cnn").unlink()
    searched(number, **how)
    tracked = trained.tracked

    @contextmanager
    def killed(training, environment, listeners=(), described=None):
        with tracked(training, environment):
            raise KeyboardInterrupt
        yield

    monkeypatch.setattr(trials, "tracked", killed)
    with pytest.raises(KeyboardInterrupt):
        searched(number + 1, **how)
    monkeypatch.setattr(trials, "tracked", tracked)
    assert by_number(searched(20, **how)) == whole


def test_an_error_ends_the_trials_of_the_other_threads(project, trained, monkeypatch):
    """They are waited for, and continued by the next search."""
    ended, tracked, began = list[bool](), trained.tracked, threading.Event()

    @contextmanager
    def failing(training, environment, listeners=(), described=None):
        if threading.current_thread() is threading.main_thread():
            assert began.wait(60)
            raise KeyboardInterrupt
        began.set()
        while not any([listener(training.folder(environment.storage)) for listener in listeners]):
            time.sleep(0.01)
        ended.append(True)
        raise TrainingStopped("the training was stopped")
        yield

    @contextmanager
    def no_plan(environment):
        yield SimpleNamespace(threads=1)

    monkeypatch.setattr(trials, "plan_resources", no_plan)
    monkeypatch.setattr(trials, "tracked", failing)
    with pytest.raises(KeyboardInterrupt):
        searched(2, parallel=2, sampler="random")
    assert ended == [True]
    monkeypatch.setattr(trials, "tracked", tracked)
    assert {state for state, *_ in by_number(searched(2, sampler="random"))} == {"complete"}


def test_what_a_killed_process_left_does_not_stop_the_next(project, trained):
    first = by_number(searched(2))
    path = studies.path_of(opened().environment, "cnn")
    path.with_name(f"{path.name}.lock").symlink_to(path)
    with open(path, "ab") as file:
        file.write(b'{"op_code": 4, "worker')
    assert by_number(searched(3))[:2] == first


def test_the_same_settings_are_never_trained_twice(project, trained):
    project.params["search"]["cnn"]["settings"] = {DROPOUT: {"choices": [0.0, 0.2, 0.3]}}
    project.write()
    ranking = searched(20, sampler="random")  # there are only three
    assert len(trained.runs) == len(ranking.trials) == 3
    repeated = [trial for trial in ranking.search.study.trials if studies.REPEATS in trial.user_attrs]
    assert repeated and all(trial.value in {each.mean for each in ranking.trials} for trial in repeated)
    searched(3, sampler="bayesian")  # another study: its trainings are known, too
    assert len(trained.runs) == 3


def test_another_metric_does_not_take_the_values_of_the_first(project, trained):
    first = searched(2, sampler="random")
    other = searched(2, sampler="random", metric="validation/cross_entropy", mode="min")
    assert {tuple(trial.fingerprints) for trial in first.trials} == {
        tuple(trial.fingerprints) for trial in other.trials
    }
    assert [trial.values for trial in other.trials] == [[14.0], [14.0]]


@pytest.mark.parametrize(
    ("metric", "mode", "monitor_mode", "step"),
    [
        ("validation/accuracy", "max", "min", 8),
        pytest.param("validation/accuracy", "max", "max", 4, marks=pytest.mark.nightly),
        pytest.param("validation/cross_entropy", "max", "min", 8, marks=pytest.mark.nightly),
    ],
)
def test_a_trial_has_the_value_of_the_model_handed_on(project, trained, metric, mode, monitor_mode, step):
    """Of the step that the training keeps, whether it is the best one for the search or not."""
    monitor = {"keep": "best", "monitor": "validation/cross_entropy", "monitor_mode": monitor_mode}
    project.params["cnn"]["training"] |= monitor
    project.write()
    for sampler in ("random", "bayesian"):  # trained, then known
        ranking = searched(1, sampler=sampler, metric=metric, mode=mode)
        [training] = ranking.search.trainings(ranking.trials[0].settings)
        value = trained.loss(step) if metric == monitor["monitor"] else trained.value(training, step)
        assert ranking.trials[0].values == [value]


def test_a_metric_that_a_training_does_not_measure_fails_the_trial(project, trained, monkeypatch):
    """Such as one that the model has with the first settings only."""
    monkeypatch.setattr(Search, "_require_metric", lambda *arguments: None)
    for _ in range(2):
        with pytest.raises(DarkroomError, match="'validation/brier' is not measured"):
            searched(2, metric="validation/brier")
    assert len(trained.runs) == 2


def test_a_metric_that_is_nan_fails_the_trial(project, trained, monkeypatch):
    monkeypatch.setattr(trained, "value", lambda training, step: float("nan"))
    for _ in range(2):
        with pytest.raises(DarkroomError, match="'validation/accuracy' is NaN"):
            searched(1)


def test_a_change_of_what_is_not_searched_begins_a_new_search(project, trained):
    first = searched(2)
    project.params["cnn"]["model"]["channels"] = [4, 4]
    project.write()
    assert not set(by_number(first)[0][3]) & set(by_number(searched(2))[0][3])
    assert len(trained.runs) == 4


def test_the_winner_in_params_yaml_does_not_begin_a_new_search(project, trained):
    best = searched(3).trials[0]
    project.params["cnn"]["model"] |= {"dropout": best.settings[DROPOUT]}
    project.write()
    assert searched(3).trials[0] == best and len(trained.runs) == 3


def test_a_hopeless_trial_ends_early_and_its_other_seeds_are_not_trained(project, trained):
    ranking = searched(20, num_seeds=3, sampler="random", pruner="median")
    pruned = [trial for trial in ranking.trials if trial.state == "pruned"]
    assert pruned and len(trained.runs) == 60 - 2 * len(pruned)
    assert min(trial.mean for trial in ranking.trials if trial.values) > 0
    assert all(not trial.values for trial in pruned)


def test_the_time_ends_a_search_and_the_next_one_continues_its_trial(project, trained):
    with pytest.raises(DarkroomError, match="no trial has a result"):
        searched(2, seconds=1e-9)
    assert not trained.runs
    assert len(searched(2, seconds=100).trials) == 2


def test_a_trial_has_the_mean_of_its_seeds(project, trained):
    best = searched(4, num_seeds=3).trials[0]
    assert [round(value - best.values[0], 6) for value in best.values] == [0, 0.001, 0.002]
    assert best.mean == pytest.approx(best.values[1])
    assert {seed for _, seed in trained.runs} == {0, 1, 2}


def test_a_difference_within_the_noise_is_named(project, trained, monkeypatch):
    monkeypatch.setattr(trained, "value", lambda training, step: 0.5 + 0.1 * training.settings.seed)
    ranking = searched(3, num_seeds=2)
    assert len(ranking.equal) == 2 and "not different from the best" in ranking.note
    assert "one seed" in searched(1).note


def test_the_noise_is_students_interval_of_a_difference():
    # Two trials of three seeds, both with the variance 1: t(0.975, 4) = 2.776, times sqrt(2/3).
    assert noise_of([[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]]) == pytest.approx(2.776 * (2 / 3) ** 0.5, abs=1e-3)
    assert noise_of([[1.0], [2.0]]) is None


def test_settings_whose_condition_does_not_hold_are_left_out(project, trained):
    for _, settings, *_ in by_number(searched(12, sampler="random")):
        assert (SHIFT in settings) == (settings[DROPOUT] == 0.2) and RATE in settings


def test_bayesian_search_finds_the_better_half(project, trained):
    """The value is 0.2 better with one of the choices: later trials have it."""
    later = by_number(searched(30))[15:]
    assert sum(settings[DROPOUT] == 0.2 for _, settings, *_ in later) > 10
