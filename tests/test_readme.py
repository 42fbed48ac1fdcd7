"""The example of a new model keeps the contract and can be trained; what the documentation names exists."""

import importlib
import re

import pytest
import yaml

import pipeline.models
from pipeline.core import metrics_log, model_files
from pipeline.core.dataset import Dataset
from pipeline.core.loop import Loop
from pipeline.core.settings import read_training
from tests.models import test_contract as contract
from tests.readme import run
from tests.test_walls import ROOT

PAGES = "\n".join((ROOT / page).read_text() for page in (*run.PAGES, "docs/promises.md"))


def block(language, first_line):
    return next(
        text for text in re.findall(rf"```{language}\n(.*?)```", PAGES, re.S) if text.startswith(first_line)
    )


@pytest.fixture
def lsgan(tmp_path, monkeypatch):
    (tmp_path / "lsgan.py").write_text(block("python", "# pipeline/models/lsgan.py"))
    monkeypatch.setattr(pipeline.models, "__path__", [*pipeline.models.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    return "lsgan"


CHECKS = [check for name, check in vars(contract).items() if name.startswith("test_")]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_readmes_model_keeps_the_contract(lsgan, check, tmp_path):
    arguments = {"name": lsgan, "device": "cpu", "shape": contract.SHAPES[1], "text": "{"}
    arguments |= {"tmp_path": tmp_path}
    wanted = check.__code__.co_varnames[: check.__code__.co_argcount]
    check(**{name: arguments[name] for name in wanted})


def test_the_readmes_model_trains_with_the_readmes_params(lsgan, tmp_path, processed_digits):
    params = block("yaml", "# params.yaml\nlsgan:").replace("num_steps: 2000", "num_steps: 150")
    (tmp_path / "params.yaml").write_text(params)
    kind = model_files.find(lsgan)
    settings, config = read_training(lsgan, kind.Config, tmp_path / "params.yaml")
    assert config.width == 256
    data = Dataset.open(processed_digits)
    task = model_files.build(lsgan, config, data.spec, settings.seed)
    Loop(task, data, settings, tmp_path / "training").run()
    lines = metrics_log.read(tmp_path / "training/metrics.jsonl")
    losses = [
        line["metrics"]["train/discriminator/loss"]
        for line in lines
        if "train/discriminator/loss" in line["metrics"]
    ]
    assert losses[-1] < losses[0] and (tmp_path / "training/samples/step-00000150.png").exists()


def test_the_readmes_stage_is_like_its_neighbours():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    shown = yaml.safe_load(block("yaml", "# dvc.yaml"))["train-lsgan"]
    neighbour = yaml.safe_load(yaml.safe_dump(stages["train-gan"]).replace("gan", "lsgan"))
    neighbour["deps"] = [f"{dep}.py" if dep == "pipeline/models/lsgan" else dep for dep in neighbour["deps"]]
    for key in ("deps", "outs"):
        neighbour[key], shown[key] = sorted(neighbour[key]), sorted(shown[key])
    assert shown == neighbour


def test_every_variable_and_command_that_the_readme_names_exists():
    from pipeline.cli import commands

    environment = (ROOT / "pipeline/environment.py").read_text()
    for variable in set(re.findall(r"`(DARKROOM_\w+|RAY_ADDRESS|MLFLOW_TRACKING_URI)`", PAGES)):
        assert variable in environment
    for command in set(re.findall(r"^darkroom (\w+)", PAGES, re.M)):
        assert command in commands.commands
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:^|`)make ([a-z-]+)", PAGES, re.M)):
        assert f"\n{target}:" in makefile, target
    for path in set(re.findall(r"`(tests/[\w/]+(?:\.py)?)`", PAGES)):
        assert (ROOT / path).exists(), path
    for key in set(re.findall(r"-S ([\w.]+)=", PAGES)):
        section, *rest = key.split(".")
        node = yaml.safe_load((ROOT / "params.yaml").read_text())[section]
        for part in rest:
            node = node[part]
