"""A small project under git and DVC: reproduced, cloned, killed, and with a server that stops."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from pipeline.environment import Environment
from pipeline.files import sha256
from pipeline.tracking import delivery_queue, registry
from tests.project import ROOT, TRAINING, Project
from tests.repository import commit, create, shell

pytestmark = pytest.mark.slow


def client_of(folder: Path):
    """A client of the project's database."""
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{folder}/mlflow.db")


def synced(project: Project, **more: str) -> str:
    """The output of ``darkroom sync`` in a project; it needs dvc.yaml and .dvc."""
    (project.folder / ".dvc").mkdir(exist_ok=True)
    (project.folder / "dvc.yaml").write_text("stages: {}")
    return shell(project.folder, "darkroom", "sync", PYTHONPATH=str(ROOT), **more)


def curves(client, run_id: str) -> dict[str, list[tuple[int, int, float]]]:
    """(step, time, value) of every metric of a run except system metrics, by key."""
    keys = [key for key in client.get_run(run_id).data.metrics if not key.startswith("system/")]
    return {
        key: [(point.step, point.timestamp, point.value) for point in client.get_metric_history(run_id, key)]
        for key in keys
    }


def run_of(client, stage: str):
    """The only run of a stage."""
    (found,) = client.search_runs(["1"], f"tags.`darkroom.stage` = '{stage}'")
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A project with only a classifier, after ``dvc repro``, committed, pushed to a folder."""
    folder = create(tmp_path_factory.mktemp("whole") / "made")
    shell(folder, "python", "dvc", "repro")
    commit(folder, "results")
    shell(folder, "python", "dvc", "push", "-q")
    return folder


@pytest.mark.nightly  # tests/readme/run.py reproduces a champion on every change
def test_the_champion_is_reproduced_bit_for_bit_from_its_commit_and_data(made):
    weights = sha256(made / "models/cnn/model.safetensors")
    output = shell(made, "darkroom", "reproduce", "cnn@champion")
    assert f"registered {weights}\nreproduced {weights}" in output and "the same, bit for bit" in output
    assert (
        "worktree" not in shell(made, "git", "worktree", "list").replace(str(made), "")
        and not (made / ".git/worktrees").exists()
    )


def test_a_model_trained_with_uncommitted_code_is_refused(made, tmp_path):
    folder = Path(shutil.copytree(made, tmp_path / "copy"))
    client = client_of(folder)
    client.set_tag(
        run_of(client, "train-cnn").info.run_id, "darkroom.git.changed", "params.yaml, pipeline/core/noise.py"
    )
    assert "uncommitted changes of pipeline/core/noise.py" in shell(
        folder, "darkroom", "reproduce", "cnn/1", code=1
    )


def test_a_clone_that_pulled_has_runs_metrics_and_model_and_can_trace_them(made):
    clone = made.with_name("clone")  # in the same folder: the path of the DVC remote is relative
    shell(made, "git", "clone", "-q", str(made), str(clone))
    shell(clone, "python", "dvc", "pull", "-q")
    assert "2 runs sent" in shell(clone, "darkroom", "sync")
    assert "0 runs sent" in shell(clone, "darkroom", "sync")
    there, here = client_of(made), client_of(clone)
    for stage in ("train-cnn", "evaluate"):
        ours, theirs = run_of(here, stage), run_of(there, stage)
        assert ours.info.status == "FINISHED" and ours.data.params == theirs.data.params
        assert ours.data.tags["darkroom.fingerprint"] == theirs.data.tags["darkroom.fingerprint"]
        mine, other = curves(here, ours.info.run_id), curves(there, theirs.info.run_id)
        assert mine.keys() == other.keys() and all(
            [p[::2] for p in mine[key]] == [p[::2] for p in other[key]] for key in mine
        )
    version, original = (one.get_model_version_by_alias("cnn", "champion") for one in (here, there))
    assert registry.results(version) == registry.results(original) != {}
    assert version.tags["darkroom.sha256"] == original.tags["darkroom.sha256"]
    for thing in ("cnn@champion", "reports/index.html", run_of(here, "train-cnn").info.run_id):
        assert "all as they were recorded" in shell(clone, "darkroom", "trace", thing)
    weights = clone / "models/cnn/model.safetensors"
    weights.chmod(0o644)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert "models/cnn/model.safetensors: differs" in shell(clone, "darkroom", "trace", "models/cnn", code=1)
    assert "models/cnn/model.safetensors: differs" in shell(clone, "darkroom", "verify", code=1)


@pytest.mark.nightly
def test_ten_kills_leave_one_run_with_the_history_of_an_uninterrupted_one(tmp_path, processed_digits):
    seed = random.SystemRandom().randrange(10**6)
    whole, cut = Project(tmp_path / "whole", processed_digits), Project(tmp_path / "cut", processed_digits)
    for project in (whole, cut):
        project.params["ae"] = {
            **project.params["ae"],
            "training": {**TRAINING, "num_steps": 600, "checkpoint_every": 20},
        }
        project.write()
    assert whole.run("stages.train", "ae")[0] == 0
    for step in sorted(random.Random(seed).sample(range(1, 590), 10)):
        cut.kill_at(cut.start("stages.train", "ae"), "ae", step)
    assert cut.run("stages.train", "ae")[0] == 0
    one, other = client_of(whole.folder), client_of(cut.folder)
    runs = [run_of(client, "train-ae") for client in (one, other)]
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    histories = [
        {
            key: [(step, value) for step, _, value in points]
            for key, points in curves(client, run.info.run_id).items()
        }
        for client, run in zip((one, other), runs)
    ]
    assert histories[0] == histories[1], f"seed {seed}"
    assert all(len({step for step, _ in points}) == len(points) for points in histories[1].values())


def test_a_killed_run_that_is_not_repeated_reads_killed_after_the_next_command(tmp_path, processed_digits):
    project = Project(tmp_path / "project", processed_digits)
    project.kill_at(project.start("stages.train", "ae"), "ae", 12)
    synced(project)
    client = client_of(project.folder)
    assert run_of(client, "train-ae").info.status == "KILLED"
    (group,) = client.search_runs(["1"], "tags.`darkroom.stage` = 'repro'")
    assert group.info.status == "KILLED"


@pytest.fixture
def server(tmp_path):
    """A function that starts and stops a tracking server."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/server.db",
        "--workers",
        "1",
    ]
    command += [
        "--artifacts-destination",
        str(tmp_path / "artifacts"),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    address, running = f"http://127.0.0.1:{port}", []

    def switch(on: bool) -> str:
        if not on:
            os.killpg(running[-1].pid, signal.SIGKILL)
            running.pop().wait(timeout=30)
            return address
        quiet = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        process = subprocess.Popen(
            command, env=quiet, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        running.append(process)
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                if requests.get(f"{address}/health", timeout=5).ok:
                    return address
            except requests.RequestException:
                time.sleep(0.2)
        raise TimeoutError(address)

    yield switch
    while running:
        switch(False)


@pytest.mark.nightly
def test_a_server_that_is_killed_during_a_training_and_restarted_has_no_gap(
    server, tmp_path, processed_digits
):
    from mlflow import MlflowClient

    project = Project(tmp_path / "project", processed_digits)
    project.params["cnn"] = {**project.params["cnn"], "training": {**TRAINING, "num_steps": 1500}}
    project.write()
    address = server(True)
    training = project.start("stages.train", "cnn", MLFLOW_TRACKING_URI=address)
    deadline = time.monotonic() + 120
    while not project.steps("cnn"):
        assert training.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    server(False)
    output, _ = training.communicate(timeout=200)
    assert training.returncode == 0 and output.count("warning: tracking is offline") == 1, output
    server(True)
    assert "1 runs sent" in synced(project, MLFLOW_TRACKING_URI=address)
    client = MlflowClient(address)
    run = run_of(client, "train-cnn")
    assert run.info.status == "FINISHED"
    recorded = [
        json.loads(line) for line in (project.folder / "history/cnn/metrics.jsonl").read_text().splitlines()
    ]
    expected = [line["step"] for line in recorded if "train/loss" in line["metrics"]]
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == expected
    assert str(client.get_model_version_by_alias("cnn", "champion").run_id) == run.info.run_id
    assert (
        delivery_queue.load_all(
            Environment(root=project.folder, storage=project.folder / ".darkroom", tracking_uri=address)
        )
        == []
    )
