"""Forks DVC, `darkroom` and stages that tests start from a server that has imported what they import.

Each start of Python with these imports takes seconds of a processor. A forked process has the parent, the
session, the pipes and the signals of one that was started; only its code is that of this checkout, whatever
its current folder holds. Every night, and in the commands of the documentation, all of them are started.
"""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import cache, partial

from pipeline import environment
from pipeline.process import DVC
from pipeline.retraining.workspace import COMMAND

MAX_BYTES, LIMIT_SECONDS = 2**17, 300
FOREIGN = ("DARKROOM_", "MLFLOW_", "DVC_", "RAY_", "GIT_")
MODULES = ("dvc", "stages.", "tests.statuses", "tests.darkroom", "tests.chaos")
CODES = {DVC[2], COMMAND[2]}  # of Python; a test may add its own
_execute_child = subprocess.Popen._execute_child


def install() -> None:
    """Fork what this process starts from now on, if the server knows it (Linux)."""
    if sys.platform.startswith("linux"):
        subprocess.Popen._execute_child = _fork_known


def is_known(words: list[str]) -> bool:
    """Whether a process that is started with these words is forked."""
    if words[0] != sys.executable or len(words) < 3:
        return False
    return words[2] in CODES if words[1] == "-c" else words[1] == "-m" and words[2].startswith(MODULES)


def _fork_known(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *others) -> None:
    words = [args] if isinstance(args, str | bytes | os.PathLike) else list(args)
    first = preexec_fn and [preexec_fn.__module__, getattr(preexec_fn, "__name__", "<mock>")]
    variables = os.environ if env is None else env
    with_ray = variables.keys() & {"RAY_ADDRESS", "DARKROOM_WORKERS"}  # not known to work after a fork
    if not is_known(words) or with_ray or (first and first[1].startswith("<")):
        return _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *others)
    from tests.chaos.forks import adopt_orphans

    pipes = others[3:9]
    files = [own if own != -1 else number for number, own in enumerate((pipes[0], pipes[3], pipes[5]))]
    request = words, os.fspath(cwd or os.getcwd()), dict(variables), others[14], first
    server = _server()
    adopt_orphans()  # the server's child ends at once, and leaves this process its own child
    try:
        socket.send_fds(server, [json.dumps(request).encode()], files)
        self.pid = int(server.recv(MAX_BYTES))
        assert server.recv(MAX_BYTES) == b"adopted"
    finally:
        adopt_orphans(False)
    self._child_created = True
    self._close_pipe_fds(*pipes)


@cache
def _server() -> socket.socket:
    """The connection to the server of this process; the server ends with it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "tests.forked"]
    quiet = {"stdout": subprocess.DEVNULL, "start_new_session": True}
    subprocess.Popen(command, stdin=theirs, env=kept | one, **quiet)
    theirs.close()
    ours.settimeout(LIMIT_SECONDS)
    assert ours.recv(MAX_BYTES) == b"ready"
    return ours


def serve() -> None:
    """Fork a process for each request, until the connection is closed."""
    environment.prepare()
    from tests.chaos import forks

    forks.prepare("optuna", "pipeline.retraining.retrain")
    requests = socket.socket(fileno=os.dup(0))
    requests.send(b"ready")
    while True:
        data, files, _, _ = socket.recv_fds(requests, MAX_BYTES, 3)
        if not data:
            return
        middle = os.fork()
        if not middle:
            middle = os.getpid()
            if pid := os.fork():
                requests.send(str(pid).encode())
                os._exit(0)
            while os.getppid() == middle:  # whose end must not count as that of the parent
                time.sleep(0.001)
            words, folder, env, new_session, first = json.loads(data)
            preexec = first and getattr(importlib.import_module(first[0]), first[1])
            forks.become(partial(run, words), files, folder, env, new_session, preexec)
        os.waitpid(middle, 0)
        for file in files:
            os.close(file)
        requests.send(b"adopted")


def run(words: list[str]) -> None:
    """Do what a process does that is started with these words."""
    from tests.chaos import forks

    if words[2] == COMMAND[2]:
        forks.run_darkroom(*words[3:])
    elif words[2] in ("dvc", DVC[2]):
        forks.run_dvc(*words[3:])
    elif words[1] == "-m":
        forks.run_module(*words[2:])
    else:
        sys.argv = ["-c", *words[3:]]
        exec(words[2], {"__name__": "__main__"})


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve()
