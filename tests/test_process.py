"""The end of a process: exit code, messages, and no processes left."""

import copy
import errno
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import limits, process
from pipeline.divergence import Diverged
from pipeline.errors import BadInput, DarkroomError
from pipeline.process import output
from tests.project import ROOT, as_from_a_terminal

HEAD = """import os, signal, sys, time
from pipeline import process
from pipeline.errors import BadInput, DarkroomError
"""
WAITING = """
def main():
    try:
        print("ready", os.getpid(), flush=True)
        time.sleep(60)
    finally:
        print("tidied", flush=True)
process.run(main)
"""


def start(code, **more):
    kept = {key: value for key, value in os.environ.items() if not key.startswith("DARKROOM_")}
    return subprocess.Popen(
        [sys.executable, "-c", HEAD + code],
        env={**kept, "PYTHONPATH": str(ROOT), **more.pop("env", {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **{"preexec_fn": as_from_a_terminal, **more},
    )


def run(code, **env):
    """(exit code, standard output, standard error)."""
    process = start(code, env=env)
    output, error = process.communicate(timeout=30)
    return process.returncode, output, error


def raising(what):
    return f"def main():\n    raise {what}\nprocess.run(main)\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("DarkroomError('is odd', where='a.txt', remedy='mend it')", 1),
        ("BadInput('is odd', where='a.txt', remedy='mend it')", 2),
    ],
)
def test_a_refusal_is_printed_in_two_lines_and_has_its_exit_code(error, code):
    assert run(raising(error)) == (code, "", "error: a.txt: is odd\n  -> mend it\n")


def test_a_ray_cluster_that_cannot_be_joined_is_named(tmp_path):
    """No token is there; the port answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        joins = f"process.run(lambda: process.start_ray({address!r}, 1))"
        env = {"HOME": str(tmp_path), "RAY_ADDRESS": address, "RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": ""}
        code, _, error = run(joins, **env)
    assert code == 1 and f"error: {address}: cannot connect to the Ray cluster: Token" in error
    assert "RAY_AUTH_TOKEN" in error and "Traceback" not in error


def test_a_local_ray_has_a_private_folder_that_is_removed_also_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(process, "MAX_SOCKET_FOLDER", 1000)
    registered = []
    monkeypatch.setattr(process, "atexit", SimpleNamespace(register=registered.append))
    dead = subprocess.Popen(["true"])
    dead.wait(timeout=60)
    for name in (f"ray-{dead.pid}-abcdefgh", "ray-other-files", f"ray-{os.getpid()}-abcdefgh"):
        (tmp_path / name).mkdir()
    folder = Path(process._ray_folder())
    assert folder.parent.parent == tmp_path and folder.parent.stat().st_mode & 0o777 == 0o700
    assert not (tmp_path / f"ray-{dead.pid}-abcdefgh").exists() and len(list(tmp_path.iterdir())) == 3
    registered[0]()
    assert not folder.parent.exists()


def test_in_a_long_temporary_folder_rays_sockets_are_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("t" * 100)))
    monkeypatch.setattr(process, "atexit", SimpleNamespace(register=lambda remove: None))
    folder = Path(process._ray_folder())
    folder.parent.rmdir()
    assert len(f"{folder}/session_2026-11-27_12-34-56_123456_{2**22}/sockets/plasma_store") <= 107


def test_without_enough_virtual_memory_ray_is_refused_and_a_failed_import_explained(monkeypatch):
    monkeypatch.setattr(process, "address_space", lambda: 10**9)
    with pytest.raises(BadInput, match=r"0\.9 GiB of virtual memory, Ray needs 4\n  -> ulimit -v unlimited"):
        process._ray_folder()
    limited = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))\n"
    error = "ImportError('a.so: failed to map segment from shared object')"
    assert "error: out of memory: the limit is 1.0 GiB" in run(limited + raising(error))[2]
    assert "Traceback" in run(raising(error))[2]


def test_an_output_that_nobody_reads_or_that_is_closed_is_no_traceback():
    prints = "def main():\n    sys.stdin.readline(); print('a' * 9, flush=True)\nprocess.run(main)"
    child = start(prints, stdin=subprocess.PIPE)
    child.stdout.close()
    child.stdin.write("go\n")
    child.stdin.close()
    assert (child.wait(timeout=30), child.stderr.read()) == (128 + signal.SIGPIPE, "")
    child.stderr.close()
    closed = shlex.join([sys.executable, "-c", HEAD + prints.replace("sys.stdin.readline(); ", "")]) + " >&-"
    done = subprocess.run(["sh", "-c", closed], capture_output=True, text=True, timeout=30, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "waits", ["time.sleep(60)", "signal.pthread_sigmask(signal.SIG_BLOCK, {2}); time.sleep(60)"]
)
def test_the_end_of_a_process_of_the_local_ray_ends_the_training_with_one_error(waits):
    code = f"""
import subprocess, types
sys.modules["ray"] = types.SimpleNamespace(is_initialized=lambda: True)
process.RAY_PROCESSES, process.RAY_POLL_SECONDS, process.RAY_GRACE_SECONDS = ("sleep",), 0.05, 0.5
def main():
    part = subprocess.Popen(["sleep", "60"])
    process._watch_ray()
    part.kill()
    {waits}
process.run(main)
"""
    what = "error: Ray: a process of the local Ray has ended\n"
    assert run(code) == (1, "", f"{what}  -> the same command continues from the last checkpoint\n")


def test_a_busy_process_has_the_exit_code_that_its_error_carries():
    code, _, error = run("def main():\n    raise DarkroomError('is taken', exit_code=75)\nprocess.run(main)")
    assert (code, error) == (75, "error: is taken\n")


def test_a_lock_that_another_process_holds_ends_with_75(tmp_path):
    held = f"""
from pathlib import Path
def main():
    with process.exclusive(Path({str(tmp_path)!r}, 'a/lock'), 'is running'):
        print('held', flush=True)
        time.sleep(60)
process.run(main)"""
    first = start(held)
    assert first.stdout.readline() == "held\n"
    code, output, error = run(held)
    first.kill()
    first.communicate(timeout=30)
    assert (code, output) == (75, "") and error.startswith(f"error: {tmp_path}/a/lock: is running\n  -> wait")
    assert run(held.replace("60", "0"))[:2] == (0, "held\n")  # a killed process does not hold it


@pytest.mark.parametrize(
    "error",
    ["BadInput('is odd', where='a.txt')", "MemoryError", "OSError(28, 'No space left on device')"],
    ids=["input", "memory", "disk"],
)
def test_the_traceback_is_shown_on_request_and_only_then(error):
    code, _, quiet = run(raising(error), DARKROOM_DEBUG="0")
    assert "Traceback" not in quiet and len(quiet.splitlines()) <= 5
    loud = run(raising(error), DARKROOM_DEBUG="1")
    assert loud[0] == code and "Traceback" in loud[2] and "in main" in loud[2] and loud[2].endswith(quiet)


def test_a_lack_of_memory_names_the_settings_to_lower():
    code, _, error = run(raising("MemoryError"))
    limit = f"{limits.memory_limit() / 2**30:.1f} GiB"
    assert code == 1
    assert error.startswith(f"error: out of memory: the limit is {limit}\n  -> DARKROOM_MICROBATCH computes")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        ("ENOSPC", "free some space"),
        ("EDQUOT", "free some space"),
        ("EACCES", "check the owner and the permissions"),
        ("EPERM", "check the owner and the permissions"),
        ("EROFS", "mount this file system for writing"),
        ("EMFILE", "allow more open files"),
        ("ENFILE", "allow more open files"),
        ("EFBIG", "raise the limit of the size of a file"),
        ("ENAMETOOLONG", "use shorter paths"),
        ("EISDIR", "DARKROOM_DEBUG=1 shows where"),
        ("EIO", "DARKROOM_DEBUG=1 shows where"),
    ],
)
def test_an_error_of_the_operating_system_has_the_remedy_for_its_cause(number, remedy):
    reason = os.strerror(getattr(errno, number))
    code, _, error = run(raising(f"OSError({getattr(errno, number)}, {reason!r}, 'models/gan')"))
    assert (
        code == 1
        and error.startswith(f"error: models/gan: {reason}\n  -> {remedy}")
        and len(error.splitlines()) == 2
    )
    assert ("space" in remedy) == ("free some space" in error)


@pytest.mark.parametrize(
    ("number", "text", "remedy"),
    [
        (28, "No space left on device", "free some space"),
        (2, "No usable temporary directory found in ['/nowhere', '/']", "set TMPDIR to a folder"),
    ],
)
def test_a_full_disk_and_a_missing_tmpdir_need_no_file_name_to_be_explained(number, text, remedy):
    code, _, error = run(raising(f"OSError({number}, {text!r})"))
    assert code == 1 and error.startswith(f"error: {text}\n  -> {remedy}")


@pytest.mark.parametrize(
    "error", ["ValueError('a bug of ours')", "ConnectionRefusedError(111, 'Connection refused')"]
)
def test_an_unexpected_error_keeps_its_traceback(error):
    code, _, text = run(raising(error))
    assert code == 1 and "Traceback" in text


def test_a_main_that_returns_gives_zero_and_gets_its_arguments():
    assert run("process.run(lambda *names: print(names), 'a', 'b')") == (0, "('a', 'b')\n", "")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
def test_a_signal_runs_the_finally_blocks_and_gives_its_own_exit_code(number, code):
    process = start(WAITING)
    assert process.stdout.readline().startswith("ready")
    process.send_signal(number)
    output, error = process.communicate(timeout=30)
    assert (process.returncode, output) == (code, "tidied\n")
    assert "Traceback" not in error and len(error.splitlines()) <= 5


def test_a_process_started_with_nohup_outlives_its_terminal():
    process = start(
        WAITING.replace("60", "0.5"), preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    assert process.stdout.readline().startswith("ready")
    process.send_signal(signal.SIGHUP)
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, output) == (0, "tidied\n")


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux signals a child when its parent ends"
)
def test_a_process_cleans_up_when_its_parent_is_killed():
    parent = start(f"import subprocess\nsubprocess.run([sys.executable, '-c', {HEAD + WAITING!r}])")
    child = int(parent.stdout.readline().split()[1])
    parent.kill()
    try:
        output, _ = parent.communicate(
            timeout=20
        )  # the child holds the other end of the pipe until it has ended
    except subprocess.TimeoutExpired:
        os.kill(child, signal.SIGKILL)
        raise
    assert output == "tidied\n"


def test_an_error_that_ray_sends_between_processes_keeps_its_parts():
    error = Diverged("is odd", where="a.txt", remedy="mend it", exit_code=75)
    other = copy.copy(error)  # by the method that pickle, and so Ray, uses
    assert (type(other), str(other), vars(other)) == (Diverged, str(error), vars(error))
    assert (other.where, other.remedy, other.exit_code) == ("a.txt", "mend it", 75)


def test_garbage_is_collected_rarely_and_not_at_the_end():
    """Otherwise the imports and the end of a stage take twice as long."""
    cycle = """
class Node:
    def __del__(self):
        print("collected")
def main():
    node = Node()
    node.itself = node
process.run(main)
print(gc.get_threshold()[0])
"""
    assert run("import gc" + cycle) == (0, "50000\n", "")
    assert run("import gc\nprocess.collect_garbage_rarely = lambda: None" + cycle)[1] == "700\ncollected\n"


def test_the_output_of_a_command_is_unchanged_and_its_failure_has_its_message(tmp_path, monkeypatch):
    data = b"a\r\n\xff b\n".decode(errors="surrogateescape")
    assert output("cat", name="cat", stdin=data) == data
    monkeypatch.setenv("DVC_STAGE", "train")
    assert output("sh", "-c", "echo $ONE$DVC_STAGE", name="sh", ONE="1") == "1\n"
    for command, seconds, message in (
        (("sh", "-c", "echo first >&2; echo 'ERROR: why' >&2; echo last >&2; exit 3"), 30, "ERROR: why"),
        (("sh", "-c", "exit 3"), 30, "exit code 3"),
        (("sleep", "9"), 0.1, "timed out after 0 s"),
        (("/nowhere/program",), 30, "No such file"),
    ):
        with pytest.raises(DarkroomError, match=f"it failed: .*{message}") as caught:
            output(*command, name="it", cwd=tmp_path, timeout_seconds=seconds)
        assert caught.value.where == str(tmp_path)
