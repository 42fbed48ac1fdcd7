"""Workers that stop or hang are replaced (each takes a minute or two: nightly)."""

import shutil
import signal
import time

import psutil
import pytest

from tests.launch.test_kill import train, wait_until_nothing_runs_in, weights
from tests.project import ROOT, TRAINING, Project

pytestmark = [pytest.mark.nightly, pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]
LIMIT = 30  # seconds
# Appended to a copy of pipeline/core/step.py: rank 1 sleeps at step 30, once.
HANG = """
import time
from pathlib import Path

_run = Step.run


def _hang_once(self, number, batch, noise):
    if number == 30 and self.context.rank == 1 and not Path({mark!r}).exists():
        Path({mark!r}).touch()
        time.sleep(3600)
    return _run(self, number, batch, noise)


Step.run = _hang_once
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory, processed_digits):
    """The weights of an undisturbed training on two workers."""
    project = long_training(tmp_path_factory.mktemp("whole"), processed_digits)
    train(project, "vae", DARKROOM_WORKERS="2")
    return weights(project, "vae")


def long_training(folder, data):
    project = Project(folder / "project", data)
    project.params["vae"] = {**project.params["vae"], "training": {**TRAINING, "num_steps": 400}}
    project.write()
    return project


def replaced_after(project, process, since):
    """Seconds from ``since`` until a step is logged again."""
    before = project.steps("vae")[-1]
    deadline = time.monotonic() + 900
    while project.steps("vae")[-1] == before:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    return time.monotonic() - since


def test_a_stopped_worker_is_replaced_and_the_model_is_the_same(tmp_path, processed_digits, whole):
    project = long_training(tmp_path, processed_digits)
    limit = {"RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(LIMIT)}
    process = project.start("stages.train", "vae", DARKROOM_WORKERS="2", **limit)
    deadline = time.monotonic() + 900
    while (project.steps("vae") or [0])[-1] < 25:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    family = psutil.Process(process.pid).children(recursive=True)
    worker = next(one for one in family if "TrainWorker" in " ".join(one.cmdline()))
    worker.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    time.sleep(1)  # let the last metrics be written
    print(f"replaced after {replaced_after(project, process, began):.1f} s with a limit of {LIMIT} s")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert weights(project, "vae") == whole and not worker.is_running()
    wait_until_nothing_runs_in(project.folder)


def test_a_worker_that_hangs_in_a_step_is_replaced_and_the_model_is_the_same(
    tmp_path, processed_digits, whole
):
    code, project = tmp_path / "code", long_training(tmp_path, processed_digits)
    for folder in ("pipeline", "stages"):
        shutil.copytree(ROOT / folder, code / folder, ignore=shutil.ignore_patterns("__pycache__"))
    step, launch = code / "pipeline/core/step.py", code / "pipeline/launch/ray_train.py"
    step.write_text(step.read_text() + HANG.format(mark=str(tmp_path / "hung")))
    text = launch.read_text().replace("WORKER_TIMEOUT_SECONDS = 300", f"WORKER_TIMEOUT_SECONDS = {LIMIT}")
    launch.write_text(text)
    process = project.start("stages.train", "vae", DARKROOM_WORKERS="2", PYTHONPATH=str(code))
    deadline = time.monotonic() + 900
    while not (tmp_path / "hung").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    began = time.monotonic()
    time.sleep(1)
    print(f"replaced after {replaced_after(project, process, began):.1f} s with a limit of {LIMIT} s")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert weights(project, "vae") == whole
