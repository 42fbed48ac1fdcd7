"""A stage ends with the DVC that has started it, and with nothing else."""

import errno
import os
import shlex
import signal
import subprocess
import sys

import pytest

from pipeline import dvc_parent
from tests.test_process import HEAD, WAITING, run, start

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only there is a stage ended with DVC"
)
RUNNING = f"{HEAD}process.run(lambda: print('ran'))"


def under_a_shell(stage, **variables):
    """Code that runs the code ``stage`` as DVC does where a shell goes on, with more variables."""
    shell = ["sh", "-c", f"{shlex.join([sys.executable, '-c', stage])}; exit 3"]
    return f"import subprocess  # dvc\nsubprocess.run({shell}, env={{**os.environ, **{variables}}})"


def test_a_stage_that_starts_after_dvc_was_killed_ends(tmp_path):
    begin = "print('ready', os.getpid(), flush=True)\n"
    begin += f"while not os.path.exists('{tmp_path}/go'): time.sleep(0.02)"
    child = HEAD + begin + WAITING
    dvc = start(
        f"import subprocess\nsubprocess.run([sys.executable, '-c', {child!r}])",
        env={"DVC_STAGE": "train-gan"},
        start_new_session=True,  # the process that adopts the stage has another session
    )
    number = int(dvc.stdout.readline().split()[1])
    dvc.kill()
    dvc.wait(timeout=20)
    (tmp_path / "go").touch()
    try:
        output, error = dvc.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        os.kill(number, signal.SIGKILL)
        raise
    assert output == "" and "DVC was killed while this stage started\n  -> run the same" in error


@pytest.mark.parametrize("with_launcher", [False, True])
def test_a_stage_ends_with_dvc_also_if_a_shell_between_them_goes_on(with_launcher):
    stage = HEAD + WAITING
    if with_launcher:
        stage = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {stage!r}])"
    dvc = start(under_a_shell(stage, DVC_STAGE="train-gan"), start_new_session=True)
    number = int(dvc.stdout.readline().split()[1])
    dvc.kill()
    try:
        output, _ = dvc.communicate(timeout=20)  # the stage holds the other end of the pipe
    except subprocess.TimeoutExpired:
        os.kill(number, signal.SIGKILL)
        raise
    assert output == "tidied\n"


def test_a_stage_that_a_script_with_dvcs_library_starts_runs():
    assert run(RUNNING, DVC_STAGE="train-gan")[1] == "ran\n"


def test_a_stage_that_a_launcher_of_dvcs_command_starts_runs(tmp_path):
    launcher = (
        f"import subprocess\nsubprocess.run([sys.executable, '-c', {RUNNING!r}], start_new_session=True)"
    )
    assert run(launcher, DVC_STAGE="train-gan")[1] == "ran\n"


@pytest.mark.parametrize("exported", ["train-gan", "another"])
def test_a_stage_runs_where_the_caller_of_dvc_has_set_the_variable(exported):
    code = under_a_shell(RUNNING, DVC_STAGE="train-gan")
    dvc = start(code, env={"DVC_STAGE": exported}, start_new_session=True)
    output, error = dvc.communicate(timeout=30)
    assert output == "ran\n", error


def test_a_signal_for_the_whole_group_does_not_end_the_finally_blocks():
    slow = WAITING.replace("finally:", "finally:\n        time.sleep(process.DVC_POLL_SECONDS + 1)")
    dvc = start(under_a_shell(HEAD + slow, DVC_STAGE="train-gan"), start_new_session=True)
    assert dvc.stdout.readline().startswith("ready")
    os.killpg(dvc.pid, signal.SIGTERM)  # to the stage, and to the shell, whose end is a second signal
    assert dvc.communicate(timeout=30)[0] == "tidied\n"


def test_what_is_not_known_ends_no_stage(monkeypatch):
    assert not dvc_parent.has_ended(os.getpid(), os.getppid())
    assert dvc_parent.has_ended(os.getpid(), os.getppid() + 1)
    process = subprocess.Popen(["true"])
    process.wait(timeout=20)
    assert dvc_parent.has_ended(process.pid, os.getpid())

    def no_descriptor(pid):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(dvc_parent, "parent_of", no_descriptor)
    assert not dvc_parent.has_ended(os.getpid(), os.getppid())
