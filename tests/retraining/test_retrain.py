"""`darkroom retrain` on a small project: promoted, refused, killed, started twice, rolled back."""

import json
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from pipeline.retraining.journal import Journal
from tests.project import ROOT
from tests.repository import commit, create, shell, start

pytestmark = pytest.mark.slow
STEPS = {
    "num_steps": 150,
    "batch_size": 64,
    "ema_decay": 0.9,
    "log_every": 50,
    "validate_every": 50,
    "sample_every": 150,
}
SECTIONS = {
    "data": {"source": "folder", "folder": "data/own/digits", "image_size": 8, "color": "grey"},
    "cnn": {
        "training": {**STEPS, "checkpoint_every": 50},
        "model": {"channels": [16, 16], "dense": [32], "optimizer": {"kind": "adamw", "learning_rate": 0.01}},
    },
    "gates": {"minimum_test_images": 20},
    "retrain": {"watch": "../incoming", "settle_seconds": 0, "commit": "in place"},
}


def deliver(project: Path, first: int, last: int, labels: np.ndarray | None = None) -> None:
    """Put scikit-learn's digits ``first`` to ``last`` into the watched folder, with ``labels`` if given."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    shown = digits.target if labels is None else labels
    for number in range(first, last):
        path = project.parent / f"incoming/{shown[number]}/{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[number] * 15).astype(np.uint8)).save(path)


def look(project: Path) -> dict:
    """The state of the project: champion, commit, promotions, quarantine, open retraining."""
    from mlflow import MlflowClient

    from pipeline.tracking import promotion

    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    serving = client.get_model_version_by_alias("cnn", "champion")
    return {
        "sha256": serving.tags["darkroom.sha256"],
        "version": int(serving.version),
        "history": [
            (event["deed"], event["from"], event["to"]) for event in promotion.alias_history(client, "1")[1:]
        ],
        "lock": shell(project, "git", "show", "HEAD:data/own/digits.dvc"),
        "aside": len(Journal(project).quarantined()),
        "open": Journal(project).current(),
    }


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """A project after its first retraining: 700 pictures, one champion."""
    project = create(tmp_path_factory.mktemp("first") / "project", **SECTIONS)
    deliver(project, 0, 700)
    output = shell(project, "darkroom", "retrain")
    assert "promoted: cnn none -> 1 (the first version)" in output, output
    return project


@pytest.fixture
def project(first, tmp_path) -> Path:
    """A copy of it, with its deliveries; MLflow's files stay where they are."""
    shutil.copytree(
        first.parent,
        tmp_path / "copy",
        symlinks=True,
        ignore=shutil.ignore_patterns("tree", "site", "worktrees"),
    )
    return tmp_path / "copy/project"


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
    page = max((project / ".darkroom/retraining/occasions").glob("*.html")).read_text()
    assert (
        "cnn: promoted" in page
        and "Version 2 against champion 1" in page
        and "http" not in page.replace("http-equiv", "")
    )
    assert "nothing new" in shell(project, "darkroom", "retrain")
    shell(project, "darkroom", "rollback", "cnn", "--reason", "a test")
    assert "nothing new" in shell(project, "darkroom", "retrain") and look(project)["version"] == 1
    events = json.loads(shell(project, "darkroom", "history", "--json"))
    assert [(row["deed"], row["to"]) for row in events] == [
        ("promote", "1"),
        ("promote", "2"),
        ("rollback", "1"),
    ]
    assert events[2]["reason"] == "a test"


def test_shuffled_labels_are_refused_and_quarantined(project):
    from sklearn.datasets import load_digits

    before = look(project)
    deliver(project, 700, 1000, np.random.default_rng(0).permutation(load_digits().target))
    output = shell(project, "darkroom", "retrain")
    after = look(project)
    assert "refused: " in output and {**after, "aside": 0} == before and after["aside"] >= 300 - 60, output
    assert "are quarantined" in shell(project, "darkroom", "retrain")
    assert "refused: " in shell(project, "darkroom", "retrain", "--readmit", "contradicts")
    deliver(project, 1000, 1400)
    assert "promoted: " in shell(project, "darkroom", "retrain")
    assert look(project)["version"] == 2 and len(list((project / "data/own/digits").rglob("*.png"))) <= 1160


@pytest.mark.timeout(900)
def test_a_champion_of_other_classes_is_announced_and_the_printed_commands_promote_by_hand(tmp_path):
    short = {**STEPS, "num_steps": 50, "sample_every": 50, "checkpoint_every": 50}
    digits = {
        "data": {"source": "digits", "folder": "", "image_size": 8},
        "gates": {"minimum_test_images": 100},
        "retrain": {},
    }
    project = create(
        tmp_path / "project", **{**SECTIONS, **digits, "cnn": {**SECTIONS["cnn"], "training": short}}
    )
    shell(project, "darkroom", "repro")
    parity = np.array(["even", "odd"])[load_labels() % 2]
    deliver(project, 0, 300, parity)
    params = json.loads((project / "params.yaml").read_text())
    (project / "params.yaml").write_text(
        json.dumps({**params, "data": SECTIONS["data"], "retrain": SECTIONS["retrain"]})
    )
    assert "git add params.yaml; git commit" in shell(project, "darkroom", "retrain", code=2)
    commit(project, "our own pictures")

    note = (
        "the champion cnn/1 knows 10 classes (0, 1, 2, 3, 4, ...) of 1 x 8 x 8 pixels, "
        "the new data has 2 classes (even, odd) of 1 x"
    )
    dry = shell(project, "darkroom", "retrain", "--dry-run")
    assert note in dry and "these champions stay" in dry and "would train: 300 new pictures" in dry, dry
    assert "about 60 pictures will be test pictures, gates.minimum_test_images is 100" in dry
    output = shell(project, "darkroom", "retrain")
    assert output.index(note) < output.index("Running stage") and "refused: cnn stays 1" in output, output
    assert serving(project) == 1 and len(Journal(project).quarantined()) == 300

    error = shell(project, "darkroom", "promote", "cnn", code=2)
    assert (
        "cnn@challenger: no version of cnn has the alias 'challenger'" in error
        and "cnn/2, cnn/1 (the champion)" in error
    )
    promote, readmit = [
        shlex.split(line, comments=True) for line in output.splitlines() if line.startswith("  darkroom ")
    ]
    assert promote == ["darkroom", "promote", "cnn/2", "--reason", "..."] and readmit[:3] == [
        "darkroom",
        "retrain",
        "--readmit",
    ]
    shell(project, *promote)
    assert serving(project) == 2

    dry = shell(project, *readmit, "--dry-run")
    assert (
        "300 quarantined pictures would be checked again" in dry
        and "would train: 300 new pictures" in dry
        and "note: the champion" not in dry
    )
    assert len(Journal(project).quarantined()) == 300 and not (project / "data/own/digits.dvc").exists()
    assert "promoted: the trained versions are the champions already" in shell(project, *readmit)
    after = look(project)
    assert (after["version"], after["aside"]) == (2, 0) and len(
        list((project / "data/own/digits").rglob("*.png"))
    ) == 300


def serving(project: Path) -> int:
    """The champion's version of the classifier."""
    from mlflow import MlflowClient

    return int(
        MlflowClient(f"sqlite:///{project}/mlflow.db").get_model_version_by_alias("cnn", "champion").version
    )


def load_labels() -> np.ndarray:
    """The classes of scikit-learn's digits."""
    from sklearn.datasets import load_digits

    return load_digits().target


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
        shutil.copytree(
            first.parent,
            tmp_path / name,
            symlinks=True,
            ignore=shutil.ignore_patterns("tree", "site", "worktrees"),
        )
        deliver(tmp_path / name / "project", 700, 900)
        return tmp_path / name / "project"

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
