"""`darkroom repro` on small DVC projects: order, overlap, dvc.lock, failures, signals, damaged files."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from pipeline import files, repro
from pipeline.cli.repro import repro as command
from pipeline.environment import Environment
from pipeline.errors import BadInput
from pipeline.tracking.dvc_lock import DvcLock
from tests import forked
from tests.project import ROOT, as_from_a_terminal

STAGE = """
import os, sys, time
from pathlib import Path
from pipeline import process
def main(name, *needs):
    content = name + "".join(Path(need).read_text() for need in needs)
    Path(f"times/{name}.began").write_text(str(time.time()))
    for number in range(50):
        print(name, "prints", number, flush=True)
    awaited, deadline = os.environ.get("WAIT_" + name), time.monotonic() + 100
    while awaited and not Path(awaited).exists():
        time.sleep(0.02)
        assert time.monotonic() < deadline
    Path(name).write_text(content)
    Path(f"times/{name}.ended").write_text(str(time.time()))
process.run(main, *sys.argv[1:])
"""
COMMAND = """
import os
from pipeline import errors, process, repro
from pipeline.cli.repro import repro as command
from pipeline.tracking import runs
def sync(environment):
    print("synced", flush=True)
    if "OFFLINE" in os.environ:
        raise errors.DarkroomError("no server")
runs.sync, repro.GRACE_SECONDS = sync, 1.0
process.run(lambda: command.main(standalone_mode=False))
"""
forked.CODES.add(COMMAND)
DEAF = "[ -e gate ] && exec touch two; trap '' INT TERM; touch times/two.began; while :; do sleep 0.1; done"
DIAMOND = {"last": ["left", "right"], "left": ["first"], "right": ["first"], "first": []}


class Small:
    """A project under git and DVC whose stages write one file each; ``commands`` replace the usual one."""

    def __init__(self, folder, needs, **commands):
        self.folder = folder
        for name in (".dvc/tmp", "times"):
            (folder / name).mkdir(parents=True)
        (folder / "stage.py").write_text(STAGE)
        cmd = {
            name: commands.get(name) or shlex.join([sys.executable, "stage.py", name, *needs[name]])
            for name in needs
        }
        stages = {
            name: {"cmd": cmd[name], "deps": ["stage.py", *deps], "outs": [name]}
            for name, deps in needs.items()
        }
        (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
        (folder / ".dvc/config").write_text(
            f"[core]\n    analytics = false\n    site_cache_dir = {folder}/.dvc/site\n"
        )
        subprocess.run(["git", "init", "-q"], cwd=folder, check=True, timeout=60)

    def start(self, *words, **more):
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("DARKROOM_", "DVC_", "RAY_", "GIT_"))
        }
        env = {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(words, cwd=self.folder, env=env, preexec_fn=as_from_a_terminal, **pipes)

    def repro(self, *arguments, **more):
        return self.start(sys.executable, "-c", COMMAND, *arguments, **more)

    def processes(self):
        return [one for one in psutil.process_iter(["cwd"]) if one.info["cwd"] == str(self.folder)]

    def time(self, event):
        return float((self.folder / "times" / event).read_text())


def ended(process):
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, output


def until(true):
    deadline = time.monotonic() + 40
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def diamond(tmp_path_factory):
    project = Small(tmp_path_factory.mktemp("diamond") / "project", DIAMOND)
    return project, *ended(
        project.repro("-j", "3", WAIT_left="times/right.ended", WAIT_right="times/left.began")
    )


def test_a_stage_starts_after_those_it_needs_and_independent_ones_overlap(diamond):
    assert diamond[1] == 0, "left and right each waited for the other to begin"
    for name, needs in DIAMOND.items():
        assert all(diamond[0].time(f"{need}.ended") < diamond[0].time(f"{name}.began") for need in needs)


def test_each_line_names_its_stage_and_is_whole_and_the_end_sums_up(diamond):
    lines = diamond[2].splitlines()
    for name in DIAMOND:
        assert [line for line in lines if f"{name} prints" in line] == [
            f"{name} | {name} prints {number}" for number in range(50)
        ]
    assert [line.rpartition(", ")[0] for line in lines[-5:-1]] == [
        f"{name}: ran" for name in ("first", "left", "right", "last")
    ]
    assert lines[-1] == "synced" and all(" | " in line for line in lines[:-5])


def test_the_lock_file_equals_that_of_a_serial_run_and_is_restored_if_damaged(diamond, tmp_path):
    project, serial = diamond[0], Small(tmp_path / "serial", DIAMOND)
    assert ended(serial.start(sys.executable, "-m", "dvc", "repro"))[0] == 0
    whole = (serial.folder / "dvc.lock").read_bytes()
    assert (project.folder / "dvc.lock").read_bytes() == whole
    commit = "git add dvc.lock && git -c user.name=a -c user.email=a@b commit -q -m all"
    assert ended(project.start("sh", "-c", commit)) == (0, "")
    (project.folder / "dvc.lock").write_bytes(whole[: whole.rindex(b"md5: ") + 2])
    (project.folder / ".dvc/tmp/rwlock").write_text("")
    code, output = ended(project.repro("-j", "2", "left", OFFLINE="1"))
    assert (
        code == 0
        and "kept as dvc.lock.broken, restored from HEAD" in output
        and "warning: no server" in output
    )
    assert output.count(": unchanged, ") == 2 and (project.folder / "dvc.lock").read_bytes() == whole


def test_a_failure_stops_what_needs_it_and_nothing_else(tmp_path):
    project = Small(
        tmp_path / "project", {"bad": [], "after": ["bad"], "later": ["after"], "good": []}, bad="kill -9 $$"
    )
    code, output = ended(project.repro("-j", "2"))
    states = [line.partition(",")[0] for line in output.splitlines() if " | " not in line][:4]
    assert states == ["bad: failed", "after: not started", "later: not started", "good: ran"]
    assert code == 137 and "synced\nerror: bad: failed with exit code 137\n" in output
    assert ended(project.repro("bad"))[0] == 1  # a plain dvc repro does not pass on the code


@pytest.mark.parametrize(
    ("number", "jobs"), [(signal.SIGINT, "2"), (signal.SIGTERM, "1"), (signal.SIGKILL, "2")]
)
def test_a_signal_leaves_no_process_and_the_next_call_finishes(tmp_path, number, jobs):
    deaf = {"two": DEAF} if number == signal.SIGINT else {}
    project = Small(tmp_path / "project", {"one": [], "two": []}, **deaf)
    shell = {"SHELL": "/bin/sh"} if number == signal.SIGKILL else {}  # dash stays between DVC and the stage
    first = project.repro("--jobs", jobs, WAIT_one="gate", WAIT_two="gate", **shell)
    until(lambda: all((project.folder / f"times/{name}.began").exists() for name in ["one", *deaf]))
    if number == signal.SIGTERM:
        code, output = ended(project.repro())
        assert code == 75 and output.startswith(
            f"error: {project.folder}/.darkroom/repro.lock: another `darkroom repro` runs here\n"
        )
    first.send_signal(number)
    code, output = ended(first)
    assert code == (-9 if number == signal.SIGKILL else 128 + number) and "synced" not in output
    if number == signal.SIGKILL:
        until(lambda: not project.processes())
    assert not project.processes()
    (project.folder / "gate").touch()
    assert ended(project.repro("--jobs", jobs))[0] == 0
    assert set(yaml.safe_load((project.folder / "dvc.lock").read_text())["stages"]) == {"one", "two"}


def test_a_stage_that_another_dvc_holds_is_tried_again(tmp_path):
    project = Small(tmp_path / "project", {"one": []})
    (project.folder / ".dvc/tmp/rwlock").write_text(
        f'{{"write": {{"{project.folder}/one": {{"pid": {os.getpid()}, "cmd": "dvc"}}}}}}'
    )
    process = project.repro("-j", "2")
    assert any("is busy" in line for line in process.stdout)
    (project.folder / ".dvc/tmp/rwlock").unlink()
    assert "one: ran" in ended(process)[1]


def test_a_killed_dvc_that_nobody_has_waited_for_holds_no_stage(tmp_path):
    project = Small(tmp_path / "project", {"one": []})
    dead = subprocess.Popen(["true"])
    until(lambda: psutil.Process(dead.pid).status() == psutil.STATUS_ZOMBIE)
    path, lives = project.folder / ".dvc/tmp/rwlock", {"pid": os.getpid(), "cmd": "dvc"}
    gone = {"pid": dead.pid, "cmd": "dvc"}
    path.write_text(
        json.dumps({"write": {f"{project.folder}/one": gone, "a": lives}, "read": {"b": [gone, lives]}})
    )
    code, output = ended(project.repro("-j", "2"))
    assert (code, "is busy" in output) == (0, False) and "one: ran" in output
    left = json.loads(path.read_text())
    assert left["write"] == {"a": lives} and left["read"]["b"] == [lives]
    dead.wait()


def test_what_a_kill_left_is_removed_and_nothing_else(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait(timeout=60)
    removed = ("models/.gan.{}.abcd_123", "history/.gan.{}.abcd_123", "data/.raw.{}.12345678")
    removed += ("data/processed/.images.{}.abcdefgh", ".plots.{}.abcdefgh")
    kept = ("models/gan", "data/raw", "models/.vae", f"models/.vae.{os.getpid()}.abcdefgh")
    reused = f"models/.ae.{os.getpid()}.abcdefgh"  # older than the process that has its number now
    for name in (*(name.format(dead.pid) for name in removed), *kept, reused):
        (tmp_path / name).mkdir(parents=True)
    os.utime(tmp_path / reused, (0, 0))
    record = tmp_path / f".darkroom/tracking/.a.json.{dead.pid}.abcdefgh.json"
    record.parent.mkdir(parents=True)
    record.touch()
    of_dvc = tmp_path / ".dvc/cache/files/md5/ab/.MgFeqRdWmDJKYKQZ.tmp"
    of_dvc.parent.mkdir(parents=True)
    of_dvc.touch()
    os.utime(of_dvc, (0, 0))
    of_another = of_dvc.with_name(".ZzFeqRdWmDJKYKQZ.tmp")  # a DVC elsewhere that shares the cache writes it
    of_another.touch()
    entries = [tmp_path / ".dvc/cache/runs/ab" / name for name in ("empty", "killed", "whole")]
    for folder, name in zip(entries, ("", "abcd.MgFeqRdWmDJKYKQZ.tmp", "abcd")):
        folder.mkdir(parents=True)
        if name:
            (folder / name).touch()
    (tmp_path / "dvc.lock").touch()
    assert repro._repair(tmp_path, tmp_path / "dvc.lock") == []
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*")}
    assert left == {*kept, "data/processed", ".darkroom/tracking", ".dvc/cache"}
    assert (
        not record.exists()
        and of_another.exists()
        and not of_dvc.exists()
        and [each.exists() for each in entries] == [False, False, True]
    )
    assert not list(tmp_path.glob(".plots*"))
    assert (tmp_path / "dvc.lock.broken").exists() and not (tmp_path / "dvc.lock").exists()


def test_a_misspelt_setting_is_refused_before_dvc_could_remove_a_model(tmp_path, monkeypatch):
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(re.sub("(?m)^cnn:.*$", "cnn:\\n  trainin: {}", text))
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)
    started = []
    monkeypatch.setattr(repro, "repro", lambda *arguments: started.append(arguments))
    with pytest.raises(BadInput, match=r"(?s)cnn\.trainin.*did you mean 'training'"):
        command.main(["train-cnn"], standalone_mode=False)
    assert not started


def test_the_folder_that_a_running_stage_writes_stays(tmp_path):
    with files.atomic_folder(tmp_path / "data/processed") as folder:
        repro._repair(tmp_path, tmp_path / "dvc.lock")
        (folder / "shard").touch()
    assert (tmp_path / "data/processed/shard").exists()


@pytest.mark.parametrize(
    "whole, flipped", [("hash: md5", "hash: mdu"), ("hash: md5", "hasi: md5"), ("5d4140", "5d414p")]
)
def test_a_flipped_bit_in_dvc_lock_is_named_and_the_file_restored(tmp_path, whole, flipped, capsys):
    text = "schema: '2.0'\nstages:\n  a:\n    cmd: 'true'\n    outs:\n    - path: a\n      hash: md5\n"
    text += "      md5: 5d41402abc4b2a76b9719d911017c592\n      size: 5\n"
    lock = tmp_path / "dvc.lock"
    lock.write_text(text)
    git = "git init -q && git add . && git -c user.name=a -c user.email=a@b commit -qm all"
    subprocess.run(["sh", "-c", git], cwd=tmp_path, check=True, timeout=60)
    lock.write_text(text.replace(whole, flipped, 1))
    with pytest.raises(BadInput, match=r"dvc\.lock: cannot be used\n  -> darkroom repro restores it"):
        DvcLock(tmp_path)
    assert repro._repair(tmp_path, lock) == ["a"] and lock.read_text() == text
    assert "restored from HEAD" in capsys.readouterr().out


def test_trainings_that_would_share_cores_run_one_after_the_other(tmp_path, capfd, monkeypatch):
    slow = "date +%s.%N > times/{0}.began; sleep 1; date +%s.%N > times/{0}.ended; touch {0}"
    project = Small(
        tmp_path / "project",
        {"train-a": [], "train-b": []},
        **{name: slow.format(name) for name in ("train-a", "train-b")},
    )
    monkeypatch.chdir(project.folder)
    repro.repro(Environment(root=project.folder), [], jobs=2, cores=2)
    assert capfd.readouterr().out.startswith(
        "1 training at a time: each uses 2 threads of 2 cores; DARKROOM_THREADS=1 would allow 2\n"
    )
    assert project.time("train-a.ended") < project.time("train-b.began") or project.time(
        "train-b.ended"
    ) < project.time("train-a.began")
    with pytest.raises(BadInput, match="nonsense"):
        repro.repro(Environment(root=project.folder), ["nonsense"], jobs=2)


def test_the_limit_of_trainings_is_printed_with_a_setting_that_raises_it(capsys):
    for cores, more, limit, message in (
        (
            8,
            {},
            1,
            "1 training at a time: each uses 8 threads of 8 cores; DARKROOM_THREADS=2 would allow 4\n",
        ),
        (
            8,
            {"threads": 3},
            2,
            "2 trainings at a time: each uses 3 threads of 8 cores; DARKROOM_THREADS=2 would allow 4\n",
        ),
        (4, {"threads": 1, "workers": 2}, 2, "2 trainings at a time: each uses 2 threads of 4 cores\n"),
        (8, {"threads": 2}, 4, ""),
        (2, {"ray_address": "head:6379"}, 9, ""),
    ):
        assert (
            repro._max_trainings(
                Environment(root=Path(), **more), ["data", *(f"train-{name}" for name in "abcd")], 9, cores
            )
            == limit
        )
        assert capsys.readouterr().out == message
