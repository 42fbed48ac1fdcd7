"""Commands with models of the registry, below the root of a project and outside of one."""

import contextlib
import json
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.tracking.runs import Description, open_run
from tests.cli.pictures import (
    answers,
    everything,
    picture,
)
from tests.command import darkroom, done
from tests.project import PARAMS


class TestRegistry:
    """Models of MLflow's registry, by name."""

    @pytest.fixture
    def registered(self, shelf, place, monkeypatch):
        for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI", "DARKROOM_STORAGE"):
            monkeypatch.delenv(name, raising=False)
        where = cli.environment.read()
        with open_run(where, Description("train-gan", "f" * 64)) as run:
            for name in ("cnn", "gan", "ae"):
                run.register(shelf / name, name)
        (place / "models").unlink()  # so that only the registry has the models

    def test_models_of_the_registry_are_used_by_alias_and_by_version(self, registered, shelf):
        picture("a.png", 1)
        for name in ("gan@champion", "gan/1"):
            assert done("generate", name, "--count", 2) == f"2 pictures -> {name.replace('/', '-')}.png\n"
        done("generate", "gan", "--count", 2, "--models", shelf)
        files = [Path(name).read_bytes() for name in ("gan.png", "gan@champion.png", "gan-1.png")]
        assert files[0] == files[1] == files[2]
        assert done("classify", "a.png", "--model", "cnn@champion") == done(
            "classify", "a.png", "--models", shelf
        )
        assert done("restore", "a.png", "--model", "ae/1").startswith("1 pictures")

    def test_an_unknown_version_is_refused_with_the_known_ones(self, registered):
        for name, reason, there in (
            ("gan@production", "no version of gan has the alias 'production'", "gan/1 (the champion)"),
            ("gan/7", "no such version", "gan/1 (the champion)"),
            ("nothing@champion", "no such registered model", "gan (versions 1 to 1"),
        ):
            code, output, error = darkroom("generate", name)
            assert (code, output) == (2, "") and f"{name}: {reason}" in error and there in error


class TestSubfolder:
    """Commands in a folder below the project's root."""

    @pytest.fixture
    def deep(self, place, monkeypatch):
        for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI", "DARKROOM_STORAGE"):
            monkeypatch.delenv(name, raising=False)
        (place / "params.yaml").write_text(json.dumps(PARAMS))
        folder = place / "notes/deep"
        folder.mkdir(parents=True)
        monkeypatch.chdir(folder)
        return folder

    def test_the_models_are_the_projects_and_the_pictures_are_where_the_user_is(self, deep):
        picture("a.png", 1)
        assert list(answers(done("classify", "a.png"))) == ["a.png"]
        done("generate", "gan", "--count", 1)
        done("generate", "gan", "--count", 1, "--out", "mine.png")
        done("restore", "a.png")
        assert everything(deep) == [
            "a.png",
            "gan.png",
            "mine.png",
            "restored",
            "restored/a.png",
            "restored/pairs.png",
        ]
        assert everything(deep.parents[1])[:3] == [".dvc", "dvc.yaml", "models"]

    def test_the_database_and_the_settings_are_the_projects(self, deep):
        root = deep.parents[1]
        done("sync")
        assert (root / "mlflow.db").is_file() and (root / ".darkroom").is_dir()
        for command in ("sync", "history", "doctor", "verify", "trace", "promote"):
            arguments = {"trace": ["../../dvc.yaml"], "promote": ["nothing"]}.get(command, [])
            here = darkroom(command, *arguments)
            with contextlib.chdir(root):
                there = darkroom(command, *(["dvc.yaml"] if command == "trace" else arguments))
            assert there == here, command
            assert Path.cwd() == deep and everything(deep) == []

    def test_outside_a_project_commands_are_refused_and_make_nothing(
        self, tmp_path_factory, shelf, monkeypatch
    ):
        outside = tmp_path_factory.mktemp("outside")
        monkeypatch.chdir(outside)
        commands = [
            "sync",
            "history",
            "verify",
            "retrain",
            "repro",
            "trace x",
            "compare x",
            "seeds vae",
            "recipe",
            "promote vae",
            "rollback vae",
        ]
        for command in [
            *commands,
            "reproduce vae/1",
            "generate gan",
            "generate gan@champion",
            "classify .",
            "restore .",
        ]:
            code, output, error = darkroom(*command.split())
            assert (code, output) == (2, "") and "not inside a project" in error and "dvc.yaml" in error, (
                command
            )
        darkroom("doctor")
        assert everything(outside) == []
        picture("a.png", 1)
        assert len(done("classify", "a.png", "--models", shelf).splitlines()) == 1
        assert done("generate", "gan", "--count", 1, "--models", shelf) == "1 pictures -> gan.png\n"
        assert done("restore", "a.png", "--models", shelf).startswith("1 pictures")
