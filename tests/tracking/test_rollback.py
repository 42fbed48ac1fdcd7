"""Promotions that are interrupted or repeated, and rollbacks, leave one champion and its history."""

import itertools
import shutil

import pytest

from pipeline.errors import BadInput
from pipeline.tracking import promotion, registry
from pipeline.tracking.runs import Description, open_run
from tests.tracking.conftest import write_model
from tests.tracking.test_promotion import add, champion


def test_an_interrupted_promotion_leaves_the_alias_on_one_of_both_versions(
    environment, client, tmp_path, monkeypatch
):
    for seed in (0, 1):
        add(environment, tmp_path, seed, fid=1.0)
    version = client().get_model_version("vae", "2")
    from mlflow import MlflowClient

    monkeypatch.setattr(
        MlflowClient, "set_registered_model_alias", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        promotion.promote(environment, version, "cut", [])
    monkeypatch.undo()
    assert champion(client) == "1"
    promotion.promote(environment, version, "again", [])
    assert champion(client) == "2" and promotion.rollback(environment, "vae", "back") == ("2", "1")


def test_each_rollback_undoes_one_promotion_also_of_a_version_that_was_the_champion_before(
    environment, client, tmp_path, monkeypatch
):
    monkeypatch.setattr(registry, "_save", lambda path, folder, *_: shutil.copytree(folder, path / "model"))
    with open_run(environment, Description("train-vae", "a" * 64)) as run:
        for seed in range(3):
            run.register(write_model(tmp_path / f"vae-{seed}", "vae", seed), "vae")
    promote = lambda number: promotion.promote(
        environment, client().get_model_version("vae", number), "better", []
    )
    for number in ("2", "3", "2", "2", "1", "2"):  # the fourth as after a kill
        promote(number)
    restored = [promotion.rollback(environment, "vae", "back")[1] for _ in range(5)]
    assert restored == ["1", "2", "3", "2", "1"]
    with pytest.raises(BadInput, match="no previous champion"):
        promotion.rollback(environment, "vae", "back")


def test_a_promotion_by_a_retraining_happens_once_and_not_after_a_rollback(
    environment, client, tmp_path, monkeypatch
):
    for seed in (0, 1):
        add(environment, tmp_path, seed, fid=1.0)
    same_second = itertools.count((promotion.now() // 1000 + 1) * 1000)  # milliseconds
    monkeypatch.setattr(promotion, "now", lambda: next(same_second))
    for _ in range(2):
        promotion.promote(environment, client().get_model_version("vae", "2"), "better", [], "a night")
    assert champion(client) == "2" and promotion.rollback(environment, "vae", "back") == ("2", "1")
    for retraining in ("a night", "the next night"):
        promotion.promote(environment, client().get_model_version("vae", "2"), "better", [], retraining)
        assert champion(client) == "1"
    promotion.promote(environment, client().get_model_version("vae", "2"), "by hand", [])
    assert champion(client) == "2" and "darkroom.unwanted" not in client().get_model_version("vae", "2").tags
    history = [
        (entry["event"], entry["from"], entry["to"]) for entry in promotion.alias_history(client(), "1")
    ]
    assert history == [
        ("first", "", "1"),
        ("promote", "1", "2"),
        ("rollback", "2", "1"),
        ("promote", "1", "2"),
    ]


def test_a_rollback_holds_even_if_the_promotion_was_killed_before_it_was_recorded(
    environment, client, tmp_path, monkeypatch
):
    from mlflow import MlflowClient

    for seed in (0, 1):
        add(environment, tmp_path, seed, fid=1.0)
    monkeypatch.setattr(MlflowClient, "set_terminated", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        promotion.promote(environment, client().get_model_version("vae", "2"), "better", [], "a night")
    monkeypatch.undo()
    assert champion(client) == "2" and promotion.rollback(environment, "vae", "back") == ("2", "1")
    promotion.promote(environment, client().get_model_version("vae", "2"), "better", [], "a night")
    assert champion(client) == "1"
