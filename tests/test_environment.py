"""Environment variables: defaults, accepted values and refused values."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import environment
from pipeline.errors import BadInput


def read(monkeypatch, **variables):
    monkeypatch.setattr(environment.os, "environ", variables)
    return environment.read()


def test_without_any_variable_everything_happens_here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert read(monkeypatch) == environment.Environment(
        root=tmp_path,
        workers="auto",
        device="auto",
        ray_address="",
        storage=tmp_path / ".darkroom",
        tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
        artifacts=str(tmp_path / "mlartifacts"),
        mirror="",
        price_per_hour=None,
    )


def test_an_empty_variable_is_none(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = (
        "DARKROOM_WORKERS",
        "DARKROOM_DEVICE",
        "DARKROOM_STORAGE",
        "DARKROOM_MIRROR",
        "RAY_ADDRESS",
        "MLFLOW_TRACKING_URI",
        "DVC_ROOT",
    )
    names += ("DARKROOM_PRICE_PER_HOUR",)
    assert read(monkeypatch, **dict.fromkeys(names, "")) == read(monkeypatch)


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("DARKROOM_WORKERS", "auto", "workers", "auto"),
        ("DARKROOM_WORKERS", "1", "workers", 1),
        ("DARKROOM_WORKERS", "10000", "workers", 10_000),
        ("DARKROOM_DEVICE", "cpu", "device", "cpu"),
        ("DARKROOM_DEVICE", "cuda", "device", "cuda"),
        ("DARKROOM_DEVICE", "mps", "device", "mps"),
        ("DARKROOM_STORAGE", "/mnt/all", "storage", Path("/mnt/all")),
        ("DARKROOM_STORAGE", "s3://bucket/x/", "remote", "s3://bucket/x"),
        ("DARKROOM_THREADS", "3", "threads", 3),
        ("DARKROOM_MICROBATCH", "16384", "microbatch", 16_384),
        ("DARKROOM_MIRROR", "https://mirror.example/sets", "mirror", "https://mirror.example/sets"),
        ("DARKROOM_PRICE_PER_HOUR", "0.75", "price_per_hour", 0.75),
        ("DARKROOM_PRICE_PER_HOUR", "0", "price_per_hour", 0.0),
        ("RAY_ADDRESS", "ray://head:10001", "ray_address", "ray://head:10001"),
        ("MLFLOW_TRACKING_URI", "http://mlflow:5000", "tracking_uri", "http://mlflow:5000"),
    ],
)
def test_each_variable_sets_its_field_and_no_other(monkeypatch, tmp_path, variable, text, field, value):
    monkeypatch.chdir(tmp_path)
    assert read(monkeypatch, **{variable: text}) == dataclasses.replace(read(monkeypatch), **{field: value})


def test_every_field_has_been_tried(monkeypatch):
    tried = {
        "root",
        "workers",
        "device",
        "storage",
        "remote",
        "threads",
        "mirror",
        "ray_address",
        "tracking_uri",
        "artifacts",
    }
    tried |= {"price_per_hour", "microbatch"}
    assert {field.name for field in dataclasses.fields(environment.Environment)} == tried


@pytest.mark.parametrize(
    ("variable", "text", "remedy"),
    [
        *(
            ("DARKROOM_WORKERS", text, "a number from 1")
            for text in ("0", "-1", "1.5", "two", "10001", "²", "AUTO", " 2")
        ),
        *(("DARKROOM_DEVICE", text, "auto, cpu, cuda or mps") for text in ("gpu", "CPU", "cuda:0")),
        ("DARKROOM_STORAGE", __file__, "a folder that every worker sees"),
        *(("DARKROOM_THREADS", text, "a number from 0") for text in ("-1", "all", "10001")),
        *(("DARKROOM_MICROBATCH", text, "a number from 0 to 1000000") for text in ("-1", "auto", "1000001")),
        *(
            ("DARKROOM_PRICE_PER_HOUR", text, "a number from 0")
            for text in ("-1", "nan", "inf", "0,75", "$2")
        ),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_its_variables_name(monkeypatch, variable, text, remedy):
    with pytest.raises(BadInput, match=remedy) as caught:
        read(monkeypatch, **{variable: text})
    assert caught.value.where == variable and repr(text) in caught.value.what


@pytest.mark.parametrize("text", ["0" * 63, "0" * 65, "secret"])
def test_a_mistyped_secret_is_refused_without_being_printed(monkeypatch, tmp_path, text):
    monkeypatch.setenv("DARKROOM_PRIVACY_SECRET", text)
    with pytest.raises(BadInput, match="64 hexadecimal digits") as caught:
        environment.privacy_secret(environment.Environment(tmp_path))
    assert text not in str(caught.value) and caught.value.where == "DARKROOM_PRIVACY_SECRET"


def test_within_a_temporary_copy_of_dvc_the_root_is_the_one_that_dvc_names(monkeypatch, tmp_path):
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path)
    here = read(monkeypatch, DVC_ROOT="copy", DARKROOM_STORAGE="store")
    assert here.root == tmp_path / "copy" and here.tracking_uri == f"sqlite:///{tmp_path}/copy/mlflow.db"
    assert here.storage == tmp_path / "store"


def test_the_root_is_the_nearest_project_upward(monkeypatch, tmp_path):
    inner = tmp_path / "outer/inner"
    for project in (tmp_path / "outer", inner):
        (project / ".dvc").mkdir(parents=True)
        (project / "dvc.yaml").write_text("stages: {}")
    (inner / "deep/er/.dvc").mkdir(parents=True)  # without dvc.yaml it is no project
    for folder, root in (
        (inner / "deep/er", inner),
        (inner, inner),
        (tmp_path / "outer", tmp_path / "outer"),
        (tmp_path, None),
    ):
        monkeypatch.chdir(folder)
        assert environment.find_project(Path()) == root
        here = read(monkeypatch)
        assert here.root == (root or tmp_path) and here.tracking_uri == f"sqlite:///{here.root}/mlflow.db"


def test_telemetry_is_off_and_ray_asks_for_a_token(monkeypatch):
    monkeypatch.setattr(environment.os, "environ", {})
    environment.prepare()
    for name, value in {
        "DO_NOT_TRACK": "true",
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
    }.items():
        assert environment.os.environ[name] == value
    assert environment.QUIET.items() <= environment.os.environ.items()


@pytest.mark.parametrize("value", ["1", ""])
def test_what_the_user_set_stays(monkeypatch, value):
    monkeypatch.setattr(environment.os, "environ", {"RAY_USAGE_STATS_ENABLED": value, "OTHER": "x"})
    environment.prepare()
    assert {
        **environment.QUIET,
        "RAY_USAGE_STATS_ENABLED": value,
        "OTHER": "x",
    }.items() <= environment.os.environ.items()


def test_a_ray_of_our_own_has_a_fresh_token_and_a_cluster_keeps_its_own(monkeypatch):
    tokens = []
    for variables in (
        {},
        {},
        {"RAY_ADDRESS": "local"},
        {"RAY_ADDRESS": "head:6379"},
        {"RAY_AUTH_TOKEN_PATH": "token"},
        {"RAY_AUTH_TOKEN": "mine"},
    ):
        monkeypatch.setattr(environment.os, "environ", variables)
        environment.prepare()
        tokens.append(variables.get("RAY_AUTH_TOKEN"))
    assert [len(token) for token in tokens[:3]] == [64] * 3 and tokens[0] != tokens[1]
    assert tokens[3:] == [None, None, "mine"]


def test_the_address_local_means_a_ray_of_our_own(monkeypatch):
    monkeypatch.setattr(environment.os, "environ", {"RAY_ADDRESS": "local"})
    assert environment.read().ray_address == ""
    environment.prepare()
    assert "RAY_ADDRESS" not in environment.os.environ
    assert environment.os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"  # it listens on loopback


def test_importing_the_pipeline_sets_nothing():
    modules = "pipeline.environment, pipeline.process, pipeline.cli"
    code = f"import os; before = dict(os.environ); import {modules}; assert os.environ == before"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(environment.__file__).parents[1])


@pytest.mark.parametrize(
    ("text", "shown"), [(None, False), ("", False), ("0", False), ("1", True), ("yes", True)]
)
def test_tracebacks_are_shown_when_asked_for(monkeypatch, text, shown):
    monkeypatch.setattr(environment.os, "environ", {} if text is None else {"DARKROOM_DEBUG": text})
    assert environment.debug() is shown
    environment.set_debug()
    assert environment.debug()


@pytest.mark.parametrize(("variables", "stage"), [({}, ""), ({"DVC_STAGE": "train-gan"}, "train-gan")])
def test_the_stage_that_dvc_runs_is_known(monkeypatch, variables, stage):
    monkeypatch.setattr(environment.os, "environ", variables)
    assert environment.dvc_stage() == stage
