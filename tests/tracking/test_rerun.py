"""The commands of a run, executed in a clone, make the same weights."""

import json
import subprocess
from pathlib import Path

import pytest

from pipeline.files import sha256
from pipeline.tracking import lineage, rerun
from pipeline.tracking.rerun import Change
from tests.repository import create, shell


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, timeout=60)


def write(folder: Path, params: dict) -> None:
    (folder / "params.yaml").write_text(json.dumps(params))


@pytest.fixture
def repository(tmp_path):
    """A repository with params.yaml and a source file."""
    write(
        tmp_path,
        {
            "data": {"source": "digits"},
            "vae": {"training": {"seed": 0}, "model": {"beta": 1.0, "dense": [64, 32]}},
        },
    )
    (tmp_path / "code.py").write_text("")
    git(tmp_path, "init", "-q", "-b", "main")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "one")
    return tmp_path


def test_committed_params_are_not_a_change(repository):
    assert rerun.changes(repository) == []
    tags = lineage.git_tags(repository)
    assert rerun.commands("train-vae", tags, [])[-1] == "dvc repro train-vae"


def test_each_change_is_an_override_that_dvc_can_apply(repository):
    changed = {
        "data": {
            "source": "folder",
            "folder": "a 'b' \"c\", d",
            "address": "https://x.example/y?z=1",
            "empty": "",
        },
        "vae": {
            "training": {"seed": 3},
            "model": {"beta": 1e-05, "dense": [64, [1, "null"]], "clip": None, "on": True, "kind": "hinge"},
        },
        "gan": {"model": {"width": 8}},
    }
    del changed["vae"]["model"]["on"]
    write(repository, changed)
    found = rerun.changes(repository)
    assert Change("vae.training.seed", 3) in found and Change("gan.model.width", 8, "+") in found
    git(repository, "checkout", "-q", "params.yaml")
    from dvc.utils.hydra import apply_overrides

    apply_overrides(repository / "params.yaml", [change.override for change in found])
    assert rerun.read_params(repository) == rerun.leaves(changed)


def test_a_removed_param_is_an_override_that_removes_it(repository):
    write(
        repository,
        {"data": {"source": "digits"}, "vae": {"training": {"seed": 0}, "model": {"dense": [64, 32]}}},
    )
    assert [change.override for change in rerun.changes(repository)] == ["~vae.model.beta"]


def test_uncommitted_code_is_named_in_the_note(repository):
    (repository / "code.py").write_text("x = 1")
    write(
        repository,
        {
            "data": {"source": "digits"},
            "vae": {"training": {"seed": 5}, "model": {"beta": 1.0, "dense": [64, 32]}},
        },
    )
    note = rerun.note("train-vae", lineage.git_tags(repository), rerun.changes(repository))
    assert "uncommitted changes of code.py" in note and "params.yaml" not in note
    assert "dvc exp run -S vae.training.seed=5 train-vae" in note


def test_without_a_commit_there_is_no_command(tmp_path):
    tags = lineage.git_tags(tmp_path)
    assert rerun.commands("train-vae", tags, []) == [] and "not a git repository" in rerun.note(
        "train-vae", tags, []
    )


def test_a_name_shows_a_few_params_of_its_stage():
    changed = [
        Change("data.image_size", 8),
        Change("gan.model.width", 4),
        *(Change(f"vae.model.p{n}", n) for n in range(4)),
    ]
    assert rerun.title(rerun.of_stage(changed, "train-gan"), "train-gan") == "data image_size=8, width=4"
    assert (
        rerun.title(rerun.of_stage(changed, "train-vae"), "train-vae")
        == "data image_size=8, p0=0, p1=1, 2 more"
    )
    assert rerun.title(changed[:2]) == "data image_size=8, gan width=4"
    assert rerun.of_stage(changed, "evaluate") == changed


@pytest.mark.nightly
def test_the_commands_of_an_experiments_run_make_the_same_weights_in_a_clone(tmp_path):
    from mlflow import MlflowClient

    folder = create(tmp_path / "made")
    overrides = (
        "-S",
        "cnn.training.num_steps=20",
        "-S",
        "++cnn.training.seed=3",
        "-S",
        "cnn.model.channels=[4,8]",
    )
    shell(folder, "python", "dvc", "exp", "run", *overrides, "train-cnn")
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs(["1"], "tags.`darkroom.stage` = 'train-cnn'")
    (parent,) = client.search_runs(["1"], "tags.`darkroom.stage` = 'repro'")
    assert run.info.run_name == "train-cnn, num_steps=20, channels=[4, 8], seed 3"
    experiment = run.data.tags["darkroom.experiment"]
    assert parent.info.run_name.startswith(f"{experiment}: ") and "cnn num_steps=20" in parent.info.run_name
    assert parent.data.params["cnn.training.seed"] == "3" and parent.data.params["data.image_size"] == "8"

    for noted in (run, parent):
        commands = noted.data.tags["mlflow.note.content"].split("```sh\n")[1].split("\n```")[0].splitlines()
        assert commands[0] == f"git checkout {run.data.tags['mlflow.source.git.commit']}"
    assert " && ".join([*commands[:2], f"{commands[2]} train-cnn"]) == run.data.tags["darkroom.command"]
    clone = tmp_path / "clone"
    shell(tmp_path, "git", "clone", "-q", str(folder), str(clone))
    shell(clone, "bash", "-e", "-c", run.data.tags["darkroom.command"])
    weights = "models/cnn/model.safetensors"
    assert sha256(clone / weights) == sha256(folder / weights)
