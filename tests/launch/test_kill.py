"""Kill it at any moment; run the same command again."""

import json
import os
import random
import shutil
import signal
import time

import psutil
import pytest

from pipeline.core import metrics_log
from pipeline.files import sha256
from tests.project import MODELS, PARAMS, TRAINING, Project

pytestmark = pytest.mark.slow
NAMES = [pytest.param(name, marks=pytest.mark.nightly) for name in MODELS]  # cnn and gan: tests/chaos
SIGNALS = [
    signal.SIGTERM,
    *(pytest.param(number, marks=pytest.mark.nightly) for number in (signal.SIGINT, signal.SIGHUP)),
]


def weights(project, name):
    return sha256(project.folder / "models" / name / "model.safetensors")


def measured(project, name):
    lines = metrics_log.read(project.folder / "history" / name / "metrics.jsonl")
    return [
        (
            line["step"],
            {key: value for key, value in line["metrics"].items() if not key.startswith("system/")},
        )
        for line in lines
    ]


def train(project, name, **more):
    code, output = project.run("stages.train", name, **more)
    assert code == 0, output
    return output


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_training_ends_like_an_uninterrupted_one(tmp_path, processed_digits, name):
    seed = random.SystemRandom().randrange(10**6)
    step = random.Random(seed).randrange(1, TRAINING["num_steps"])
    whole, cut = Project(tmp_path / "whole", processed_digits), Project(tmp_path / "cut", processed_digits)
    train(whole, name)
    died = cut.kill_at(cut.start("stages.train", name), name, step)
    assert not (cut.folder / "models" / name).exists(), "an unfinished model was written"
    kept = [
        int(path.stem.removeprefix("step-")) for path in cut.trainings(name)[0].glob("checkpoints/*.json")
    ]
    train(cut, name)
    assert weights(whole, name) == weights(cut, name), f"killed at step {died} (seed {seed})"
    assert measured(whole, name) == measured(cut, name)
    assert max(kept, default=0) >= died - 2 * TRAINING["checkpoint_every"]


@pytest.mark.nightly
def test_so_does_one_in_float16_with_its_loss_scales(tmp_path, processed_digits, monkeypatch):
    monkeypatch.setitem(PARAMS["vae"], "training", {**TRAINING, "precision": "float16"})
    test_a_killed_training_ends_like_an_uninterrupted_one(tmp_path, processed_digits, "vae")
    last = metrics_log.read(tmp_path / "cut/history/vae/metrics.jsonl")[-1]["metrics"]
    assert 1 <= last["train/loss_scale"] < 65536  # the first steps overflowed


@pytest.mark.nightly
@pytest.mark.cluster
def test_a_lost_worker_and_a_killed_training_give_the_same_model_and_ray_listens_only_on_loopback(
    tmp_path, processed_digits
):
    whole, cut = Project(tmp_path / "whole", processed_digits), Project(tmp_path / "cut", processed_digits)
    for one in (whole, cut):
        one.params["vae"] = {**one.params["vae"], "training": {**TRAINING, "num_steps": 400}}
        one.write()
    assert "local workers" in train(whole, "vae", DARKROOM_WORKERS="2")
    process = cut.start("stages.train", "vae", DARKROOM_WORKERS="2")
    deadline = time.monotonic() + 120
    while (cut.steps("vae") or [0])[-1] < 25:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    sockets = [each for one in family for each in one.net_connections() if each.status == psutil.CONN_LISTEN]
    addresses = {each.laddr.ip.removeprefix("::ffff:") for each in sockets}
    assert addresses and all(ip.startswith("127.") or ip == "::1" for ip in addresses), (
        "Ray listens beyond loopback"
    )
    next(one for one in family if "TrainWorker" in " ".join(one.cmdline())).kill()
    time.sleep(1)  # let the last metrics be written
    died = cut.steps("vae")[-1]
    assert died < 300 and not (cut.folder / "models/vae").exists()
    cut.kill_at(process, "vae", died + 30)
    wait_until_nothing_runs_in(cut.folder)
    train(cut, "vae", DARKROOM_WORKERS="2")
    assert weights(whole, "vae") == weights(cut, "vae")
    assert measured(whole, "vae") == measured(cut, "vae")


def test_a_finished_training_is_not_repeated_and_one_from_scratch_gives_the_same_weights(
    tmp_path, processed_digits
):
    project = Project(tmp_path / "project", processed_digits)
    train(project, "gan")
    before, card = weights(project, "gan"), (project.folder / "models/gan/model.json").read_bytes()
    (folder,) = project.trainings("gan")
    note, damaged = folder / "finished.json", folder / "model/model.safetensors"
    content = json.loads(note.read_text())
    content["times"] = {"loop": 1.0}  # as the worker writes it, if the driver dies before it adds the rest
    note.write_text(json.dumps(content))
    assert "already finished" in train(project, "gan") and weights(project, "gan") == before
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    assert "already finished" not in train(project, "gan") and weights(project, "gan") == before
    shutil.rmtree(folder)
    assert "already finished" not in train(project, "gan") and weights(project, "gan") == before
    assert (project.folder / "models/gan/model.json").read_bytes() == card


def test_another_setting_starts_clean(tmp_path, processed_digits):
    project = Project(tmp_path / "project", processed_digits)
    project.kill_at(project.start("stages.train", "ae"), "ae", 30)
    project.params["ae"] = {**project.params["ae"], "training": {**TRAINING, "seed": 1}}
    project.write()
    fresh = Project(tmp_path / "fresh", processed_digits)
    fresh.params = project.params
    fresh.write()
    train(project, "ae")
    train(fresh, "ae")
    assert weights(project, "ae") == weights(fresh, "ae")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_training_with_its_own_code_and_the_run_reads_killed(
    tmp_path, processed_digits, number
):
    project = Project(tmp_path / "project", processed_digits)
    project.params["ae"] = {**project.params["ae"], "training": {**TRAINING, "num_steps": 100_000}}
    project.write()
    process = project.start("stages.train", "ae")
    deadline = time.monotonic() + 120
    while (project.steps("ae") or [0])[-1] < 25:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, number)
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number, output
    assert "Traceback" not in output
    status = json.loads(project_runs(project))
    assert status == ["KILLED"]


@pytest.mark.cluster
@pytest.mark.nightly
def test_ctrl_c_ends_real_workers_too(tmp_path, processed_digits):
    project = Project(tmp_path / "project", processed_digits)
    project.params["ae"] = {**project.params["ae"], "training": {**TRAINING, "num_steps": 100_000}}
    project.write()
    process = project.start("stages.train", "ae", DARKROOM_WORKERS="2")
    deadline = time.monotonic() + 120
    while not project.steps("ae"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert (
        process.returncode == 130 and "the same command continues" in output and "Traceback" not in output
    ), output
    wait_until_nothing_runs_in(project.folder)


def test_a_training_ends_when_dvc_is_killed(tmp_path, processed_digits):
    """DVC leaves its stage running; two stages would then write the same folder."""
    project = Project(tmp_path / "project", processed_digits)
    project.params["ae"] = {**project.params["ae"], "training": {**TRAINING, "num_steps": 100_000}}
    project.write()
    parent = project.start("tests.parent", "stages.train", "ae")
    deadline = time.monotonic() + 120
    while not project.steps("ae"):
        assert parent.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    child = psutil.Process(parent.pid).children()[0]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    child.wait(timeout=30)


def project_runs(project):
    code, output = project.run("tests.statuses")
    assert code == 0, output
    return output.splitlines()[-1]


def wait_until_nothing_runs_in(folder, limit=60):
    """Ray's processes notice that their driver is gone."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        left = [
            one
            for one in psutil.process_iter(["cmdline"])
            if str(folder) in " ".join(one.info["cmdline"] or [])
        ]
        if not left:
            return
        time.sleep(0.2)
    raise AssertionError(f"still running: {left}")
