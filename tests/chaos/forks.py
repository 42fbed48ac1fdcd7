"""Start `darkroom repro`, DVC and the stages by fork instead of exec, which saves their imports.

They are real processes with the parents, sessions and pipes that they have otherwise. A kill of all of them
takes what a kill of the process group would, and leaves what it would.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import psutil

from pipeline.process import DVC, DVC_SCRIPT
from pipeline.retraining.workspace import COMMAND
from tests.chaos import points

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h: orphans become children of this process
STAGE = re.compile(r"python -m (stages\.\w+)(.*)")
_execute_child = subprocess.Popen._execute_child
kept_files: list[int] = []  # descriptors that children keep


def prepare(*more: str) -> None:
    """Import what the stages import, and ``more``, and fork in place of later starts of DVC and of stages.

    Threads do not survive a fork, so no import may start one.
    """
    import matplotlib.pyplot
    import mlflow
    import mlflow.pyfunc
    import ray.train.torch
    import sklearn.datasets
    import torch
    from dvc import cli  # noqa: F401
    from dvc.commands import repro
    from dvc.repo import Repo

    import pipeline.cli
    import pipeline.data.preprocess
    import pipeline.evaluation.evaluate
    import pipeline.evaluation.report
    import pipeline.launch.tracked
    import pipeline.tracking.registry

    imported = (
        matplotlib.pyplot,
        mlflow.pyfunc,
        ray.train.torch,
        sklearn.datasets,
        repro,
        Repo,
        pipeline.cli,
    )
    for name in more:
        importlib.import_module(name)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:  # this imports more
        subprocess.run(["git", "init", "-q"], cwd=folder, check=True, timeout=60)
        with contextlib.redirect_stdout(None):
            Repo.init(folder).close()
        mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
    assert imported and threading.active_count() == 1, threading.enumerate()
    gc.freeze()  # its objects stay in memory that the children share
    subprocess.Popen._execute_child = _fork_known


def adopt_orphans(adopt: bool = True) -> None:
    """Let the orphans among the descendants of this process become its children."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)


def run_darkroom(*arguments: str) -> None:
    """The command ``darkroom``."""
    from pipeline.cli import main

    points.process_name[0] = "darkroom"
    sys.argv = ["darkroom", *arguments]
    main()


def run_dvc(*arguments: str) -> None:
    """The command ``dvc``, as ``darkroom repro`` starts it."""
    points.process_name[0] = "dvc"
    sys.argv = ["-c", *arguments]
    exec(DVC_SCRIPT, {"__name__": "__main__"})


def run_module(module: str, *arguments: str) -> None:
    """A module, such as that of a stage, as the main one."""
    points.process_name[0] = " ".join([module.removeprefix("stages."), *arguments])
    sys.argv = [module, *arguments]
    sys.modules.pop(module, None)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def start(function: Callable[[], None], folder: Path, output: Path, keep: list[int]) -> int:
    """Fork a process in a session of its own that calls ``function``; its id. It keeps the files ``keep``."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    kept_files.extend(keep)
    with open(output, "ab") as file:
        become(function, (-1, file.fileno(), file.fileno()), str(folder), None, True, None)


def _fork_known(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *others) -> None:
    """In place of ``Popen._execute_child``: fork for DVC and the stages, exec for other commands."""
    words = list(args) if not isinstance(args, str) else [args]
    stage = STAGE.fullmatch(words[-1])
    if tuple(words[: len(DVC)]) == DVC:
        function = lambda: run_dvc(*words[len(DVC) :])
    elif tuple(words[: len(COMMAND)]) == COMMAND:
        function = lambda: run_darkroom(*words[len(COMMAND) :])
    elif stage:
        function = lambda: run_module(stage[1], *shlex.split(stage[2]))
    else:
        return _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *others)
    pipes, new_session = others[3:9], others[14]
    sys.stdout.flush()
    self.pid = os.fork()
    if not self.pid:
        become(function, (pipes[0], pipes[3], pipes[5]), cwd, env, new_session, preexec_fn)
    self._child_created = True
    self._close_pipe_fds(*pipes)


def become(function, pipes, cwd, env, new_session, preexec_fn) -> None:
    """Run ``function`` as a new process would, and end."""
    code = 1
    try:
        atexit._clear()
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if new_session:
            os.setsid()
        for own, number in zip(pipes, range(3)):
            if own != -1:
                os.dup2(own, number)
        _forget_databases()
        _close_inherited()
        os.chdir(cwd or ".")
        if env is not None:
            os.environ.clear()
            os.environ.update(env)
        if preexec_fn:
            preexec_fn()
        function()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _forget_databases() -> None:
    """Let the process open MLflow's database itself: the connections of the parent are not its own."""
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for store in (Registry, SqlAlchemyStore):
        for engine in store._engine_map.values():
            engine.dispose(close=False)


def _close_inherited() -> None:
    """Give up the files of the parent. Their numbers stay in use: its objects may close them later."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in [int(name) for name in os.listdir("/proc/self/fd")]:
        if number > 2 and number != null and number not in kept_files:
            try:
                os.fstat(number)
                os.dup2(null, number)
            except OSError:
                pass


def wait(pid: int, log: Path, seconds: float) -> int | None:
    """Wait until the process ends, or stops at its point, or the time is over.

    Its exit code; None if it still runs.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if log.exists() and log.read_bytes().endswith(b"stopped\n"):
            return None
        time.sleep(0.005)
    return None


def kill_all() -> int:
    """Kill all processes that this one has started with -9 and read their exit codes; their number."""
    killed = 0
    while family := psutil.Process().children(recursive=True):
        for process in family:
            try:
                process.kill()
                killed += process.status() != psutil.STATUS_ZOMBIE
            except psutil.NoSuchProcess:
                pass
        reap()
    return killed


def reap() -> None:
    """Read the exit codes of all children that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
