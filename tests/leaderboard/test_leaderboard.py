"""`darkroom leaderboard` trains each variant with each seed once, also if it is killed."""

import json
import os
import signal
import time

import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient

from pipeline.core import metrics_log
from tests.repository import create, shell, start

BOARD = {
    "model": "cnn",
    "title": "Two learning rates",
    "num_steps": 60,
    "seeds": [0, 1],
    "measures": ["accuracy"],
    "curve": "accuracy",
    "settings": {"cnn.model.dropout": 0.0},
    "variants": {"slow": {"cnn.model.optimizer.learning_rate": 1e-4}, "fast (the base)": {}},
}
FILES = ("md", "csv", "json", "html")


def leaderboard(folder):
    """The output of the command, which may take minutes on a busy machine."""
    process = start(folder, "darkroom", "leaderboard", "board.yaml")
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    return output


def trainings(folder):
    """The runs of trainings in MLflow."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    return client.search_runs(["1"], "tags.`darkroom.stage` = 'train-cnn'")


def kill_in_second_training(folder, process):
    """End the command with -9 in the middle of its second training."""
    deadline = time.monotonic() + 240
    steps = [0]
    while len(steps) < 2 or min(steps) < 10:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
        logs = folder.glob(".darkroom/trainings/cnn-*/metrics.jsonl")
        steps = [line["step"] for path in logs for line in metrics_log.read(path)[-1:]]
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
    process.stdout.close()


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_a_killed_leaderboard_continues_and_ends_like_an_uninterrupted_one(tmp_path):
    folder = create(tmp_path / "killed")
    (folder / "board.yaml").write_text(yaml.safe_dump(BOARD, sort_keys=False))
    kill_in_second_training(folder, start(folder, "darkroom", "leaderboard", "board.yaml"))
    output = leaderboard(folder)
    assert "4 trainings, of which 1 are finished" in output
    assert output.count("dvc exp run --temp") == 3 and output.count("resuming from step") <= 1
    runs = trainings(folder)
    assert len(runs) == 4 and {run.info.status for run in runs} == {"FINISHED"}
    assert len({run.data.tags["darkroom.sha256"] for run in runs}) == 4
    first = {suffix: (folder / f"leaderboards/board.{suffix}").read_text() for suffix in FILES}

    output = leaderboard(folder)
    assert "4 trainings, of which 4 are finished" in output and "dvc exp run" not in output
    assert {suffix: (folder / f"leaderboards/board.{suffix}").read_text() for suffix in FILES} == first
    assert len(trainings(folder)) == 4

    whole = create(tmp_path / "whole")
    (whole / "board.yaml").write_text(yaml.safe_dump(BOARD, sort_keys=False))
    leaderboard(whole)
    numbers = [json.loads((each / "leaderboards/board.json").read_text())["rows"] for each in (folder, whole)]
    for row in (*numbers[0], *numbers[1]):
        assert row.pop("seconds")["mean"] > 0 and row.pop("cost")["mean"] > 0
    assert numbers[0] == numbers[1]

    slow, fast = numbers[0]
    assert slow["num_finished"] == fast["num_finished"] == 2 and not slow["failure"]
    assert fast["measures"]["accuracy"]["mean"] > slow["measures"]["accuracy"]["mean"]
    assert set(fast["curve"]) == {"best", "last"} and fast["num_parameters"] > 500
    table = pd.read_csv(folder / "leaderboards/board.csv")
    assert list(table.variant) == list(BOARD["variants"]) and (table["seconds mean"] > 0).all()
    assert (table["cost mean"] > 0).all() and table.settings[0] == "cnn.model.optimizer.learning_rate=0.0001"
    assert "| fast (the base) | - | **" in first["md"] and "CPU s" in first["md"]

    output = shell(folder, "darkroom", "seeds", "cnn", "2")
    assert "1 trainings, of which 0 are finished" in output and "seed 2" in output
