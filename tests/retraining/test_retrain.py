"""`darkroom retrain` on a small project: promoted, killed, started twice, rolled back."""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline.retraining.journal import Journal
from tests.project import ROOT
from tests.repository import shell, start
from tests.retraining.deliveries import copied, deliver, look

pytestmark = pytest.mark.slow


def test_with_nothing_new_nothing_changes(project):
    before = look(project)
    assert "nothing new" in shell(project, "darkroom", "retrain")
    assert look(project) == before and before["version"] == 1 and before["history"] == []
    assert shell(project, "git", "status", "--porcelain") == ""


def test_the_command_line_of_the_schedule_runs_it(project):
    programs = str(Path(sys.executable).parent)
    script = ROOT / "pipeline/retraining/schedules/retrain.sh"
    assert shell(project, "sh", str(script), str(project), programs) == ""  # cron would mail the output
    assert "nothing new" in (project / ".darkroom/retrain.log").read_text()


@pytest.mark.nightly
def test_a_killed_retraining_ends_with_a_new_champion_and_a_rollback_restores_the_old_one(project):
    before = look(project)
    deliver(project, 700, 1200)
    assert "would train: 500 new pictures" in shell(project, "darkroom", "retrain", "--dry-run")
    assert look(project) == before
    assert _kill(project, lambda: Journal(project).current() is not None)  # the result must not change
    command = f"{shutil.which('tee')} {project.parent}/notification.json"
    output = shell(project, "darkroom", "retrain", DARKROOM_NOTIFY_COMMAND=command)
    after = look(project)
    assert (
        "promoted: cnn 1 -> 2" in output
        and after["version"] == 2
        and after["history"] == [("promote", "1", "2")]
    ), output
    assert after["lock"] != before["lock"] and shell(project, "git", "status", "--porcelain") == ""
    assert len(list((project / "data/own/digits").rglob("*.png"))) == 1200 and "up to date" in shell(
        project, "python", "dvc", "status"
    )
    assert json.loads((project.parent / "notification.json").read_text())["event"] == "promoted"
    page = max((project / ".darkroom/retraining/ended").glob("*.html")).read_text()
    assert (
        "cnn: promoted" in page
        and "Version 2 against champion 1" in page
        and "http" not in page.replace("http-equiv", "")
    )
    assert "nothing new" in shell(project, "darkroom", "retrain")
    shell(project, "darkroom", "rollback", "cnn", "--reason", "a test")
    assert "nothing new" in shell(project, "darkroom", "retrain") and look(project)["version"] == 1
    events = json.loads(shell(project, "darkroom", "history", "--json"))
    assert [(row["event"], row["to"]) for row in events] == [
        ("promote", "1"),
        ("promote", "2"),
        ("rollback", "1"),
    ]
    assert events[2]["reason"] == "a test"


def test_of_two_retrainings_that_start_together_one_fails_with_75(project):
    one = start(project, "darkroom", "retrain")
    while not (project / ".darkroom/retraining/retrain.lock").exists() or not _is_held(project):
        assert one.poll() is None
        time.sleep(0.01)
    os.killpg(one.pid, signal.SIGSTOP)
    try:
        assert "another `darkroom retrain` runs here" in shell(project, "darkroom", "retrain", code=75)
    finally:
        os.killpg(one.pid, signal.SIGCONT)
    output, _ = one.communicate(timeout=240)
    assert one.returncode == 0 and "nothing new" in output


def _is_held(project: Path) -> bool:
    from filelock import FileLock, Timeout

    try:
        with FileLock(project / ".darkroom/retraining/retrain.lock", timeout=0):
            return False
    except Timeout:
        return True


def _kill(project: Path, due: Callable[[], bool]) -> bool:
    """Start a retraining and kill its processes with -9 when ``due``; whether it was still running."""
    process = start(project, "darkroom", "retrain")
    while not due() and process.poll() is None:
        time.sleep(0.05)
    try:
        if process.poll() is not None:
            return False
        os.killpg(process.pid, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while any(_works_in(project, other) for other in psutil.process_iter()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return True
    finally:
        process.wait(30)
        process.stdout.close()


def _works_in(project: Path, process: psutil.Process) -> bool:
    try:
        return process.cwd().startswith(str(project)) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@pytest.mark.nightly
@pytest.mark.timeout(2400)
def test_twenty_kills_at_random_moments_end_in_the_same_state(first, tmp_path):
    random = np.random.default_rng(seed := int(time.time()))
    print(f"seed {seed}")

    def fresh(name: str) -> Path:
        project = copied(first, tmp_path / name)
        deliver(project, 700, 900)
        return project

    undisturbed, projects, killed = fresh("undisturbed"), [fresh("0")], 0
    shell(undisturbed, "darkroom", "retrain")
    expected = look(undisturbed)
    while killed < 20:
        moment = time.monotonic() + random.uniform(0.5, 15)
        if _kill(projects[-1], lambda moment=moment: time.monotonic() > moment):
            killed += 1
            assert look(projects[-1])["version"] in (1, 2)
        else:
            assert look(projects[-1]) == expected
            projects.append(fresh(str(len(projects))))
    shell(projects[-1], "darkroom", "retrain")
    assert look(projects[-1]) == expected and expected["history"] == [("promote", "1", "2")]
