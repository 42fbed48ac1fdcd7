"""Start and end of a stage or command: quiet libraries, exit codes, errors without a traceback, no orphaned
processes."""

import ctypes
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from pipeline import environment
from pipeline.errors import EXIT_FAILED, DarkroomError

# The command `dvc`, able to write settings that are not ASCII, such as the path of a project: DVC writes its configuration in
# the default encoding of configobj, and reads it as UTF-8.
DVC_SCRIPT = """
import sys, functools, configobj
from dvc.cli import main
utf8 = functools.partialmethod(configobj.ConfigObj.__init__, default_encoding="utf-8")
configobj.ConfigObj.__init__ = utf8
sys.exit(main())
"""
DVC = (sys.executable, "-c", DVC_SCRIPT)
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
    """Run a stage's ``main`` and exit with its code: 0, 1 failed, 2 bad input, 75 busy, 128 + signal.

    A termination signal becomes ``SystemExit``, so that ``finally`` blocks run. The process also gets it when
    its parent dies: a killed ``dvc repro`` would otherwise leave its stage running.
    """
    environment.prepare()
    die_with_parent()
    signal.signal(signal.SIGTERM, _leave)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, _leave)
    try:
        main(*arguments)
    except DarkroomError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:  # from the machine: a full disk, a file without permission
        remedy = REMEDIES.get(error.errno or 0)
        if not (error.filename or remedy):
            raise
        remedy = f"{remedy}; DARKROOM_DEBUG=1" if remedy else "DARKROOM_DEBUG=1"
        _fail(
            ": ".join(filter(None, (str(error.filename or ""), error.strerror)))
            + f"\n  -> {remedy} shows where in the code"
        )
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the last checkpoint", file=sys.stderr, flush=True)
        sys.exit(128 + signal.SIGINT)
    except MemoryError:
        _fail(
            "out of memory\n  -> DARKROOM_MICROBATCH computes a batch in pieces; or lower the image size in params.yaml"
        )


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent ends (Linux; elsewhere this does nothing)."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it ended before prctl took effect
        sys.exit(EXIT_FAILED)


def keep_freed_memory() -> None:
    """Let this process reuse the memory that it frees (glibc; elsewhere this does nothing).

    By itself glibc hands a step's larger tensors back to the kernel, which clears them anew, page by page, in
    the next step.
    """
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def _fail(text: str, code: int = EXIT_FAILED) -> NoReturn:
    if environment.debug():
        traceback.print_exc()
    print(f"error: {text}", file=sys.stderr, flush=True)
    sys.exit(code)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
