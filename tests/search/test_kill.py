"""A search that is killed with -9 again and again ends like an uninterrupted one."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from mlflow import MlflowClient

from pipeline.search import study as studies
from tests.search.conftest import by_number, opened, ranked

COMMAND = [sys.executable, "-c", "from pipeline.cli import main; main()", "search", "cnn"]
NUM_TRIALS, NUM_KILLS = 6, 10


def start(project, *options):
    (project.folder / ".dvc").mkdir(exist_ok=True)
    (project.folder / "dvc.yaml").write_text("stages: {}\n")
    return subprocess.Popen(
        [*COMMAND, "--trials", str(NUM_TRIALS), *options],
        cwd=project.folder,
        env=project.environment(),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def progress(folder):
    """The number of lines that the search and its trainings have written."""
    paths = [*folder.glob(".darkroom/search/cnn.log"), *folder.glob(".darkroom/trainings/*/metrics.jsonl")]
    return sum(path.read_bytes().count(b"\n") for path in paths if path.exists())


def finish(project, *options):
    output, _ = start(project, *options).communicate(timeout=600)
    assert f"trial {NUM_TRIALS - 1} " in output, output
    return by_number(ranked(opened(sampler="random")))


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("options", [(), ("--parallel", "2")], ids=["in process", "two Ray workers"])
def test_a_search_killed_at_ten_moments_has_the_same_trials(project, options):
    options = ("--sampler", "random", *options)
    folder = project.folder
    for _ in range(NUM_KILLS):
        before, process, deadline = progress(folder), start(project, *options), time.monotonic() + 240
        while process.poll() is None and progress(folder) < before + 7:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
        process.stdout.close()
    killed = finish(project, *options)

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    runs = [run for each in client.search_experiments() for run in client.search_runs([each.experiment_id])]
    [parent] = [run for run in runs if run.data.tags["darkroom.stage"] == "search-cnn"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(runs) == NUM_TRIALS + 1 and len(children) == NUM_TRIALS
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in children:
        points = client.get_metric_history(run.info.run_id, "validation/accuracy")
        assert sorted(Counter(point.step for point in points).items()) == [(4, 1), (8, 1), (12, 1)]

    studies.path_of(opened().environment, "cnn").unlink()
    assert finish(project, *options) == killed
    assert len({tuple(fingerprints) for *_, fingerprints in killed}) == len(killed) == NUM_TRIALS
