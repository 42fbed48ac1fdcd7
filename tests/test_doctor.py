"""What `darkroom doctor` finds wrong, and how it says to mend it."""

import json
import os
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline import doctor
from tests.command import darkroom, done
from tests.project import ROOT


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project in which nothing is wrong."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc").mkdir()
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for name in ("DVC_ROOT", "DARKROOM_WORKERS", "DARKROOM_DEVICE", "DARKROOM_STORAGE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(doctor, "FREE_BYTES", 0)
    params = YAML(typ="safe").load(ROOT / "params.yaml")

    def write(change=lambda params: None):
        change(params)
        (tmp_path / "params.yaml").write_text(json.dumps(params))

    write()
    return write


def test_where_all_is_well_everything_is_listed_and_briefly_nothing(project):
    output = done("doctor")
    assert "params.yaml: data, cnn, gan, vae, ae, evaluate, gates, retrain" in output and "FAIL" not in output
    assert done("doctor", "--brief") == ""


@pytest.mark.parametrize(
    ("change", "said", "remedy"),
    [
        (lambda params: params["data"].update(sorce="digits"), "params.yaml: data.sorce: no such setting", "did you mean 'source'?"),
        (
            lambda params: params["data"].update(source="mnst"),
            "params.yaml: data.source: there is no source 'mnst'",
            "did you mean 'mnist'?",
        ),
        (lambda params: params["evaluate"].update(seed="x"), "params.yaml: evaluate.seed", "correct the value"),
        (lambda params: params.update(cnnn=params.pop("cnn")), "params.yaml: cnnn: no such section", "did you mean 'cnn'?"),
        (
            lambda params: params.update(resnet={}),
            "params.yaml: resnet: no such section",
            "known are: data, evaluate, gates, retrain, ae, cnn, gan, vae",
        ),
        (lambda params: params.update(layers={}), "params.yaml: layers: no such section", "known are: data"),
        (lambda params: params["gan"]["model"].update(width=0), "params.yaml: gan.model.width", "correct the value"),
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
    ids=["misspelt", "source", "mistyped", "section", "strange section", "not a model", "out of range", "training", "warm-up"],
)
def test_a_wrong_setting_is_named_with_its_remedy(project, change, said, remedy):
    project(change)
    code, output, _ = darkroom("doctor", "--brief")
    assert code == 2 and len(output.splitlines()) == 2
    assert output.startswith(f"FAIL  {said}" if said.startswith("params") else f"FAIL  params.yaml: {said}") and f"-> {remedy}" in output


def test_all_that_is_wrong_is_named_at_once(project):
    project(lambda params: (params["data"].update(sorce="digits"), params["gan"]["model"].update(width=0), params.update(x={})))
    _, output, _ = darkroom("doctor", "--brief")
    assert [line.split(": ")[1] for line in output.splitlines()[::2]] == ["data.sorce", "gan.model.width", "x"]


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
