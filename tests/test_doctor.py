"""What `darkroom doctor` finds wrong, and the remedies it prints."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from pipeline import doctor
from pipeline.core import model_files
from tests.command import darkroom, done
from tests.project import ROOT
from tests.repository import read_yaml

ADDRESSES = ("MLFLOW_TRACKING_URI", "DARKROOM_MIRROR")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project without faults."""
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, timeout=60, check=True)
    (tmp_path / ".dvc").mkdir()
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for name in (
        "DVC_ROOT",
        "DARKROOM_WORKERS",
        "DARKROOM_DEVICE",
        "DARKROOM_STORAGE",
        "RAY_ADDRESS",
        *ADDRESSES,
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(doctor, "FREE_BYTES", 0)
    params = YAML(typ="safe").load(ROOT / "params.yaml")

    def write(change=lambda params: None):
        change(params)
        (tmp_path / "params.yaml").write_text(json.dumps(params))

    write()
    return write


def test_without_faults_every_check_is_listed_and_with_brief_none(project):
    output = done("doctor")
    assert f"params.yaml: {', '.join(read_yaml(ROOT / 'params.yaml'))}" in output and "FAIL" not in output
    assert done("doctor", "--brief") == ""


def test_warnings_of_the_last_evaluation_are_repeated_and_are_no_fault(project, tmp_path):
    warned = {"rule": "collapsed", "what": "gan makes few distinct images", "remedy": "another seed"}
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics/details.json").write_text(json.dumps({"warnings": {"gan": [warned]}}))
    output = done("doctor")
    assert "warn  gan makes few distinct images\n      -> another seed" in output
    assert done("doctor", "--brief") == ""


@pytest.mark.parametrize(
    ("variables", "gpus", "mps", "finding"),
    [
        ({}, 0, False, "ok    workers auto on CPU"),
        ({}, 1, False, "ok    workers auto on 1 GPU"),
        ({}, 2, False, "ok    workers auto on 2 GPUs"),
        ({}, 0, True, "ok    workers auto on mps"),
        ({"DARKROOM_DEVICE": "cuda"}, 0, False, "FAIL  DARKROOM_DEVICE: no cuda device is available"),
        ({"DARKROOM_DEVICE": "mps"}, 0, False, "FAIL  DARKROOM_DEVICE: no mps device is available"),
        (
            {"DARKROOM_DEVICE": "mps", "DARKROOM_WORKERS": "2"},
            0,
            True,
            "FAIL  DARKROOM_DEVICE: mps only trains",
        ),
    ],
)
def test_the_device_is_found_or_refused(project, monkeypatch, variables, gpus, mps, finding):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, output, _ = darkroom("doctor")
    assert code == 2 * ("FAIL" in finding) and finding in output and "of memory can be used" in output


@pytest.mark.parametrize(
    ("change", "message", "remedy"),
    [
        (
            lambda params: params["data"].update(sorce="digits"),
            "params.yaml: data.sorce: no such setting",
            "did you mean 'source'?",
        ),
        (
            lambda params: params["data"].update(source="mnst"),
            "params.yaml: data.source: there is no source 'mnst'",
            "did you mean 'mnist'?",
        ),
        (
            lambda params: params["evaluate"].update(classifier="cn"),
            "params.yaml: evaluate.classifier: there is no model 'cn'",
            "did you mean 'cnn'?",
        ),
        (
            lambda params: params["evaluate"].update(classifier="gan"),
            "params.yaml: evaluate.classifier: the model 'gan' is not a classifier",
            "choose one of: cnn",
        ),
        (
            lambda params: params["evaluate"].update(feature_network="pixel"),
            "params.yaml: evaluate.feature_network: no such file or folder: pixel",
            "correct it, name a trained model, or pixels",
        ),
        (
            lambda params: params["evaluate"].update(feature_network="models/cnnn"),
            "params.yaml: evaluate.feature_network: no such file or folder: models/cnnn",
            "correct it, name a trained model, or pixels",
        ),
        (
            lambda params: params["evaluate"].update(feature_network="params.yaml"),
            "params.yaml: evaluate.feature_network: neither a classifier nor an .onnx file: params.yaml",
            "correct it, name a trained model, or pixels",
        ),
        (
            lambda params: params["evaluate"].update(models=["gan", "gna"]),
            "params.yaml: evaluate.models: there is no model 'gna'",
            "did you mean 'gan'?",
        ),
        (
            lambda params: params["evaluate"].update(seed="x"),
            "params.yaml: evaluate.seed",
            "correct the value",
        ),
        (
            lambda params: params.update(cnnn=params.pop("cnn")),
            "params.yaml: cnnn: no such section",
            "did you mean 'cnn'?",
        ),
        (
            lambda params: params.update(mystery={}),
            "params.yaml: mystery: no such section",
            "known sections: data, evaluate, search, clips, gates, retrain, scenes, "
            f"{', '.join(model_files.names())}",
        ),
        (
            lambda params: params.update(layers={}),
            "params.yaml: layers: no such section",
            "known sections: data",
        ),
        (
            lambda params: params["gan"]["model"].update(width=0),
            "params.yaml: gan.model.width",
            "correct the value",
        ),
        (
            lambda params: params["gan"]["training"].update(num_step=1),
            "params.yaml: gan.training.num_step",
            "did you mean 'num_steps'?",
        ),
        (
            lambda params: params["vae"]["training"]["schedule"].update(warmup_steps=900),
            "vae.training.schedule.warmup_steps",
            "shorten it",
        ),
    ],
    ids=[
        "misspelt",
        "source",
        "no classifier",
        "not a classifier",
        "no feature network",
        "misspelt feature network",
        "not a feature network",
        "no such model to measure",
        "mistyped",
        "section",
        "strange section",
        "not a model",
        "out of range",
        "training",
        "warm-up",
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(project, change, message, remedy):
    project(change)
    code, output, _ = darkroom("doctor", "--brief")
    assert code == 2 and len(output.splitlines()) == 2
    assert (
        output.startswith(
            f"FAIL  {message}" if message.startswith("params") else f"FAIL  params.yaml: {message}"
        )
        and f"-> {remedy}" in output
    )


def test_all_that_is_wrong_is_named_at_once(project):
    project(
        lambda params: (
            params["data"].update(sorce="digits"),
            params["gan"]["model"].update(width=0),
            params.update(x={}),
        )
    )
    _, output, _ = darkroom("doctor", "--brief")
    assert [line.split(": ")[1] for line in output.splitlines()[::2]] == [
        "data.sorce",
        "gan.model.width",
        "x",
    ]


def test_a_missing_file_of_settings_is_named(project):
    Path("params.yaml").unlink()
    code, output, _ = darkroom("doctor", "--brief")
    assert code == 2 and "params.yaml: no such file" in output and "project's root" in output


def test_a_package_of_another_version_than_pinned_is_named(project):
    Path("requirements.lock").write_text("# pinned\ntorch==0.1\n")
    code, output, _ = darkroom("doctor", "--brief")
    assert code == 2 and "requirements.lock says 0.1\n      -> make install" in output


def test_a_folder_without_dvc_and_a_full_disk_are_named(project, monkeypatch):
    Path(".dvc").rmdir()
    monkeypatch.setattr(doctor, "FREE_BYTES", 2**60)
    code, output, _ = darkroom("doctor", "--brief")
    assert code == 2 and "git init && dvc init" in output and "set DARKROOM_STORAGE" in output


def test_a_variable_that_cannot_be_used_is_named(project, monkeypatch):
    monkeypatch.setenv("DARKROOM_WORKERS", "many")
    code, _, error = darkroom("doctor")
    assert code == 2 and "DARKROOM_WORKERS" in error


def failures(*arguments):
    """The lines of `darkroom doctor` that name something wrong, each with its remedy; they give exit code
    2."""
    code, output, _ = darkroom("doctor", *arguments)
    lines = output.splitlines()
    found = {
        line.removeprefix("FAIL  "): lines[number + 1].strip()
        for number, line in enumerate(lines)
        if line.startswith("FAIL")
    }
    assert code == (2 if found else 0), output
    return found


def test_a_machine_without_git_is_named(project, monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/dvc").symlink_to(shutil.which("dvc"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert failures() == {"git is not on the PATH": "-> install git: DVC and MLflow's run tags need it"}
    assert failures("--brief") == failures()


def test_a_project_outside_git_is_named(project, tmp_path):
    shutil.rmtree(".git")
    assert failures() == {
        f"{tmp_path} is not in a git repository": "-> run: git init; git add -A; git commit -m 'first commit'"
    }


LOCK = {
    "schema": "2.0",
    "stages": {
        "train-cnn": {"cmd": "true", "outs": [{"path": path} for path in ("models/cnn", "history/cnn")]}
    },
}


def test_a_model_that_dvc_lock_records_and_that_is_missing_is_named(project):
    Path("dvc.lock").write_text(json.dumps(LOCK))
    (found,) = failures().items()
    assert (
        found[0] == "models/cnn is recorded in dvc.lock, but the folder is missing"
        and "dvc checkout models/cnn" in found[1]
    )
    Path("models/cnn").mkdir(parents=True)
    Path("models/cnn/model.json").touch()
    assert list(failures()) == ["models/cnn is recorded in dvc.lock, but model.safetensors is missing"]
    assert failures("--brief") == {}  # `dvc repro` restores it or trains it again
    Path("models/cnn/model.safetensors").touch()
    assert failures() == {} and "models/cnn is trained" in done("doctor")


@pytest.mark.parametrize(
    "text", ["", "stages: [", "<<<<<<< HEAD\nschema: '2.0'\n", "[]", "schema: '2.0'\nstages: {train-cnn: 3}"]
)
def test_a_dvc_lock_that_cannot_be_read_is_named(project, text):
    Path("dvc.lock").write_text(text)
    (found,) = failures().items()
    assert found[0] == "dvc.lock cannot be read" and "git checkout dvc.lock" in found[1]
    assert done("doctor", "--brief").startswith("warn  dvc.lock cannot be read\n")  # make repro continues


@pytest.mark.parametrize("text", ["", "{", "[]", '{"wrive": {}}'])
def test_a_damaged_list_of_dvcs_running_commands_is_named(project, text):
    Path(".dvc/tmp").mkdir()
    Path(".dvc/tmp/rwlock").write_text(text)
    (found,) = failures().items()
    assert "rwlock is damaged" in found[0] and "rm .dvc/tmp/rwlock" in found[1]
    assert done("doctor", "--brief").startswith("warn  .dvc/tmp/rwlock is damaged")
    Path(".dvc/tmp/rwlock").write_text("{}")
    assert failures("--brief") == {}


def test_a_moved_project_is_named_with_its_remedy(project, monkeypatch):
    monkeypatch.setattr(doctor, "moved_from", lambda environment: "/former/place")
    code, output, _ = darkroom("doctor")
    assert code == 2 and "moved here from /former/place" in output and "-> darkroom sync" in output
