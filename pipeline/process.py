"""Start and end of a stage or command: settings of libraries, exit codes, error messages, signals."""

import ctypes
import errno
import io
import os
import shlex
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from pipeline import environment
from pipeline.errors import EXIT_BUSY, EXIT_FAILED, DarkroomError

# The command `dvc` with a fix for settings that are not ASCII, such as the path of a project: DVC reads its
# configuration as UTF-8 but writes it in the default encoding of configobj.
DVC_SCRIPT = """
import sys, functools, configobj
from dvc.cli import main
utf8 = functools.partialmethod(configobj.ConfigObj.__init__, default_encoding="utf-8")
configobj.ConfigObj.__init__ = utf8
sys.exit(main())
"""
DVC = (sys.executable, "-c", DVC_SCRIPT)
LIBC = ctypes.CDLL(None)  # loaded here: a child may not load a library between fork and exec
PR_SET_PDEATHSIG = 1  # linux/prctl.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
KEPT_BYTES, LARGEST_MMAP_THRESHOLD = 2**30, 2**25
SPACE = "free some space there, or use a folder on another disk"
ACCESS = "check the owner and the permissions (ls -ld), or run as the user who owns it"
DESCRIPTORS = "allow more open files: ulimit -n 4096; or use fewer workers"
REMEDIES = {
    errno.ENOSPC: SPACE,
    errno.EDQUOT: SPACE,
    errno.EACCES: ACCESS,
    errno.EPERM: ACCESS,
    errno.EROFS: "mount this file system for writing, or use a folder on another one",
    errno.EMFILE: DESCRIPTORS,
    errno.ENFILE: DESCRIPTORS,
}


def run(main: Callable[..., None], *arguments: str) -> None:
    """Run ``main``; exit with 1 if it failed, 2 for bad input, 75 if busy, 128 + n after signal n.

    SIGTERM becomes ``SystemExit``, so that ``finally`` blocks run. The process also gets SIGTERM when its
    parent dies: without this, a killed ``dvc repro`` would leave its stage running.
    """
    environment.prepare()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a line is visible at once, also in a file
    die_with_parent()
    signal.signal(signal.SIGTERM, _leave)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, _leave)
    try:
        main(*arguments)
    except DarkroomError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:  # such as a full disk or a file without permission
        remedy = REMEDIES.get(error.errno or 0)
        if not (error.filename or remedy):
            raise
        what = ": ".join(filter(None, (str(error.filename or ""), error.strerror)))
        remedy = f"{remedy}; DARKROOM_DEBUG=1" if remedy else "DARKROOM_DEBUG=1"
        _fail(f"{what}\n  -> {remedy} shows where in the code")
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the last checkpoint", file=sys.stderr, flush=True)
        sys.exit(128 + signal.SIGINT)
    except MemoryError:
        remedy = "DARKROOM_MICROBATCH computes a batch in pieces; or lower the image size in params.yaml"
        _fail(f"out of memory\n  -> {remedy}")


def output(
    *command: str,
    name: str,
    cwd: Path = Path(),
    stdin: str = "",
    timeout_seconds: float = 60,
    **variables: str,
) -> str:
    """The standard output of ``command`` in the folder ``cwd``, outside the current DVC stage.

    ``variables`` are added to its environment. Bytes that are not UTF-8 become surrogates. Raises
    ``DarkroomError`` with its error message if it fails; ``name`` is its name there.
    """
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment.for_child(variables),
            input=stdin.encode(errors="surrogateescape"),
            capture_output=True,
            timeout=timeout_seconds,
            preexec_fn=die_with_parent,
        )
        code, messages = done.returncode, done.stderr.decode(errors="replace")
    except subprocess.TimeoutExpired:
        code, messages = 1, f"timed out after {timeout_seconds:,.0f} s"
    except OSError as error:
        code, messages = 1, str(error)
    if code:
        lines = messages.strip().splitlines() or [f"exit code {code}"]
        reason = next((line for line in lines if line.lower().startswith(("fatal:", "error:"))), lines[-1])
        what, remedy = f"{name} failed: {reason[:300]}", "correct this and repeat the command"
        raise DarkroomError(what, where=str(cwd.resolve()), remedy=remedy)
    return done.stdout.decode(errors="surrogateescape")


@contextmanager
def exclusive(path: Path, what: str, remedy: str = "wait for it, or end it") -> Iterator[None]:
    """Hold the lock file ``path``. Raises ``DarkroomError`` with exit code 75 if another process holds it."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DarkroomError(what, where=str(path), remedy=remedy, exit_code=EXIT_BUSY) from None
    try:
        yield
    finally:
        lock.release()


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent ends (Linux; elsewhere this does nothing)."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # the parent ended before prctl took effect
        sys.exit(EXIT_FAILED)


def worker_python() -> dict[str, str]:
    """The runtime environment of local Ray workers: empty, unless the path of Python must be quoted.

    Ray 2.60 starts workers with a shell command in which that path is not quoted.
    """
    quoted = shlex.quote(sys.executable)
    return {} if quoted == sys.executable else {"py_executable": quoted}


def keep_freed_memory() -> None:
    """Let this process reuse the memory that it frees (glibc; elsewhere this does nothing).

    By default, glibc returns the memory of large tensors to the kernel after each step, and the kernel clears
    every page again in the next step.
    """
    with suppress(AttributeError):
        LIBC.mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        LIBC.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def _fail(text: str, code: int = EXIT_FAILED) -> NoReturn:
    if environment.debug():
        traceback.print_exc()
    print(f"error: {text}", file=sys.stderr, flush=True)
    sys.exit(code)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
