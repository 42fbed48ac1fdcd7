"""A version is identified by the weights of a model and the settings that its answers depend on."""

import shutil
from pathlib import Path

import pytest

from pipeline.core import model_files
from pipeline.estimate import Estimate
from pipeline.retraining import champion_challenger
from pipeline.tracking import delivery_queue, identity, promotion, registry, run_comparison, runs
from pipeline.tracking.runs import Description, open_run
from pipeline.tracking.trace import trace
from tests.tracking.conftest import SMALL, SPEC, write_model
from tests.tracking.traced_project import environment_of, titles

DIGEST = "darkroom.digest"  # a tag that earlier versions of Darkroom did not write


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A version has the model's files alone: MLflow takes a second for its own."""
    save = lambda path, folder, *_: shutil.copytree(folder, path / "artifacts/model")
    monkeypatch.setattr(registry, "_save", save)


def gan(folder: Path, truncation: float, **card) -> Path:
    """A GAN in ``folder``. Its weights are the same for each truncation."""
    task = model_files.build("gan", {**SMALL["gan"], "truncation": truncation}, SPEC, seed=0)
    model_files.write(task, folder, card)
    return folder


def add(environment, folder: Path, fid: float) -> tuple[str, str]:
    """Track, register and measure the model in ``folder``: the training's run id, the version."""
    letter = format(int(fid), "x")
    with open_run(environment, Description("train-gan", letter * 64)) as run:
        version = run.register(folder, "gan")
    with open_run(environment, Description("evaluate", letter * 64)) as evaluation:
        cards = {"gan": model_files.read_card(folder)}
        evaluation.log_results({"gan": {"fid": {"value": fid}}}, cards, {"gan": "p" * 64})
    return run.id, version


def measured(results) -> list[float]:
    return [numbers["fid"].value for numbers in results.values()]


def test_trainings_that_differ_in_a_setting_of_the_card_alone_are_versions_with_results_of_their_own(
    environment, client, tmp_path
):
    folders = [gan(tmp_path / "tree/models/gan", 1.0), gan(tmp_path / "b", 0.7)]
    folders.append(gan(tmp_path / "c", 1.0, class_names=["a", "b", "c", "d"]))
    assert len({model_files.read_card(folder)["sha256"] for folder in folders}) == 1
    added = [add(environment, folder, fid) for folder, fid in zip(folders, (1.0, 2.0, 3.0))]
    assert [version for _, version in added] == ["1", "2", "3"]
    assert add(environment, folders[0], 1.0) == added[0]  # repeated: nothing new
    compared = run_comparison.collect(client(), [run for run, _ in added] + ["gan/1", "gan/2", "gan/3"])
    assert [measured(one.results) for one in compared] == [[1.0], [2.0], [3.0]] * 2
    found = champion_challenger.challengers(client(), tmp_path / "tree")
    assert found["gan"].version == 1 and len(client().search_model_versions("name = 'gan'")) == 3
    promotion.promote(environment, client().get_model_version("gan", "2"), "better", [])
    assert registry.register(client(), added[0][0], folders[0], "gan", {}, undecided=False) == "1"
    assert client().get_registered_model("gan").aliases == {"champion": 2, "challenger": 1}


def test_a_version_that_was_registered_without_a_digest_is_found_by_the_card_in_its_files(
    environment, client, tmp_path
):
    first, second = gan(tmp_path / "a", 1.0), gan(tmp_path / "b", 0.7)
    run_id, _ = add(environment, first, 1.0)
    digest = client().get_model_version("gan", "1").tags[DIGEST]
    client().delete_model_version_tag("gan", "1", DIGEST)
    client().delete_tag(run_id, DIGEST)
    (compared,) = run_comparison.collect(client(), [run_id])
    assert measured(compared.results) == [1.0]
    assert add(environment, second, 2.0)[1] == "2" and add(environment, first, 1.0)[1] == "1"
    assert client().get_model_version("gan", "1").tags[DIGEST] == digest
    client().delete_model_version_tag("gan", "1", DIGEST)
    shutil.rmtree(environment.artifacts)  # nothing says now that it is the same model
    assert add(environment, first, 1.0)[1] == "3"


def test_a_setting_that_is_none_counts_as_one_that_an_earlier_version_did_not_have():
    card = {"sha256": "a" * 64, "config": {"width": 8, "optimizer": {"beta": 0.5}}}
    newer = {**card, "config": {"width": 8, "privacy": None, "optimizer": {"beta": 0.5, "clip": None}}}
    assert identity.of_card(card) == identity.of_card(newer)


def test_records_and_results_that_an_earlier_version_left_are_sent(environment, client, tmp_path):
    folder = gan(tmp_path / "gan", 0.7)
    sha256 = model_files.read_card(folder)["sha256"]
    old = {"folder": str(folder), "name": "gan", "sha256": sha256, "waits": ""}
    with open_run(environment, Description("train-gan", "a" * 64)) as run:
        run._record.model = old
    assert (
        client().get_model_version("gan", "1").tags.items()
        >= identity.tags(model_files.read_card(folder)).items()
    )
    with open_run(environment, Description("evaluate", "a" * 64)) as run:
        result = {"metrics": {"fid": {"value": 2.0}}, "sha256": sha256, "protocol": "p" * 64, "time": 1}
        run._record.results = {"gan": result}
    assert measured(registry.results(client().get_model_version("gan", "1"))) == [2.0]


def test_kept_weights_with_another_card_are_not_registered(environment, client, tmp_path, monkeypatch):
    folder = gan(tmp_path / "gan", 1.0)
    with monkeypatch.context() as offline:
        offline.setattr(runs.connection, "connect", lambda _: (_ for _ in ()).throw(OSError("down")))
        with open_run(environment, Description("train-gan", "a" * 64)) as run:
            run.register(folder, "gan")
    gan(folder, 0.7)
    runs.sync(environment)
    assert delivery_queue.load_all(environment) == []
    (found,) = client().search_runs(["1"], "tags.`darkroom.stage` = 'train-gan'")
    assert found.data.tags["darkroom.version"].startswith("none: the weights were replaced")
    assert not client().search_registered_models()


@pytest.mark.parametrize("digest", [True, False])
def test_the_lineage_of_a_folder_has_the_versions_with_its_card_alone(origin, tmp_path, digest):
    root = Path(shutil.copytree(origin, tmp_path / "copy"))
    other = tmp_path / "cnn"
    model_files.write(model_files.build("cnn", SMALL["cnn"], SPEC, 0), other, {"class_names": list("abcd")})
    with open_run(environment_of(root), Description("train-cnn", "e" * 64)) as run:
        assert run.register(other, "cnn") == "2"
    if not digest:  # of the first one, which an earlier version of Darkroom registered
        client = runs.connection.connect(environment_of(root))[0]
        client.delete_model_version_tag("cnn", "1", DIGEST)
    below, above = (titles(trace(environment_of(root), name).down) for name in ("models/cnn", "cnn/2"))
    assert "model cnn/1" in below and "model cnn/2" not in below
    assert "models/cnn" not in titles(trace(environment_of(root), "cnn/2").up) + above


def test_results_of_an_evaluation_that_dvc_restored_name_the_model(tmp_path):
    card = model_files.read_card(write_model(tmp_path / "vae", "vae"))
    fid = {"vae": {"fid": Estimate(1.0).to_json()}}
    (result,) = runs.restored.results_of(fid, identity.tags(card, "vae"), 1).values()
    assert identity.of_card(card).items() <= result.items()
