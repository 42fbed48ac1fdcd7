"""Start and end of a stage or command: settings of libraries, exit codes, error messages, signals, Ray."""

import atexit
import ctypes
import gc
import io
import logging
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from pipeline import dvc_parent, environment
from pipeline.errors import EXIT_BUSY, EXIT_FAILED, BadInput, DarkroomError, remedy_for
from pipeline.limits import LESS_MEMORY, address_space, memory_limit

if TYPE_CHECKING:
    import psutil

T = TypeVar("T")

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
LIBC = ctypes.CDLL(None)
PRCTL = getattr(LIBC, "prctl", None)  # looked up here: between fork and exec the linker's lock may be held
PR_SET_PDEATHSIG = 1  # linux/prctl.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
KEPT_BYTES, LARGEST_MMAP_THRESHOLD = 2**30, 2**25
MAX_SOCKET_FOLDER = 18  # characters: a socket's path has at most 107, and Ray adds up to 87
DVC_POLL_SECONDS = 1.0
ECHO_SECONDS = 5.0  # a signal for a whole group ends the parent, too, whose end is a second signal
CONNECT_SECONDS = 10.0  # to the port of a Ray cluster
GC_THRESHOLD = 50_000  # new objects between two garbage collections; the default is 700
RAY_PROCESSES, RAY_POLL_SECONDS, RAY_GRACE_SECONDS = ("raylet", "gcs_server"), 1.0, 10.0
ray_has_ended = Event()  # it was not shut down
left_at = 0.0  # when a signal began to end this process, by time.monotonic()
RAY_BYTES = 4 * 2**30  # of address space, for each process of Ray


def run(main: Callable[..., None], *arguments: str) -> None:
    """Run ``main``; exit with 1 if it failed, 2 for bad input, 75 if busy, 128 + n after signal n.

    SIGTERM becomes ``SystemExit``, so that ``finally`` blocks run. The process also gets SIGTERM when its
    parent dies: without this, a killed ``dvc repro`` would leave its stage running.
    """
    collect_garbage_rarely()
    environment.prepare()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: the next file would get its number
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - open until the end
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a line is visible at once, also in a file
    die_with_parent()
    if stage := environment.dvc_stage():
        _end_with_dvc(stage)
    signal.signal(signal.SIGTERM, _leave)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, _leave)
    try:
        main(*arguments)
    except DarkroomError as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:  # the reader of the output has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what is written at the end
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:  # such as a full disk or a file without permission
        remedy = remedy_for(error)
        if not (error.filename or remedy):
            raise
        what = ": ".join(filter(None, (str(error.filename or ""), error.strerror)))
        remedy = f"{remedy}; DARKROOM_DEBUG=1" if remedy else "DARKROOM_DEBUG=1"
        _fail(f"{what}\n  -> {remedy} shows where in the code")
    except KeyboardInterrupt:
        if ray_has_ended.is_set():
            sys.exit(EXIT_FAILED)
        print("interrupted; the same command continues from the last checkpoint", file=sys.stderr, flush=True)
        sys.exit(128 + signal.SIGINT)
    except (MemoryError, ImportError) as error:
        if isinstance(error, ImportError) and not 0 < address_space() < RAY_BYTES:
            raise
        _fail(f"out of memory: the limit is {memory_limit() / 2**30:.1f} GiB\n  -> {LESS_MEMORY}")


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
def exclusive(path: Path, what: str, remedy: str = "wait for it, or stop it") -> Iterator[None]:
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
    parent = os.getppid()
    if PRCTL is not None:
        PRCTL(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # the parent ended before prctl took effect
        sys.exit(EXIT_FAILED)


def _end_with_dvc(stage: str) -> None:
    """End this ``stage`` when DVC ends, also if the shell between them, which waits for it, goes on."""
    child, dvc, is_dvc = dvc_parent.find(stage)
    if not is_dvc:
        _fail("DVC was killed while this stage started\n  -> run the same command again")

    def watch() -> None:
        while not dvc_parent.has_ended(child, dvc):
            time.sleep(DVC_POLL_SECONDS)
        if not left_at:  # a second signal would end the finally blocks
            os.kill(os.getpid(), signal.SIGTERM)

    if child != os.getpid():
        in_thread(watch)


def start_ray(address: str, num_cpus: int, num_gpus: int = 0) -> bool:
    """Join the Ray cluster at ``address``, or start a local Ray if it is ''. False if Ray is running already.

    A local Ray has ``num_cpus`` and ``num_gpus``. Raises ``DarkroomError`` if the cluster cannot be reached.
    """
    environment.prepare()
    import ray

    if ray.is_initialized():
        return False
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if not address:
        options |= {"num_cpus": num_cpus, "num_gpus": num_gpus, "include_dashboard": False}
        options |= {"runtime_env": worker_python(), "_temp_dir": _ray_folder()}
    host, _, port = address.rpartition("/")[2].rpartition(":")
    try:
        if port.isdigit():  # where nothing listens, ray.init tries for a quarter of an hour
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        ray.init(address=address or "local", **options)  # None would join any cluster found on this machine
    except Exception as error:  # Ray raises many types
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        if not address:
            remedy = "DARKROOM_WORKERS=auto needs no Ray on a machine with at most one GPU"
            raise DarkroomError(f"cannot start: {reason}", where="Ray", remedy=remedy) from error
        what = f"cannot connect to the Ray cluster: {reason}"
        remedy = "check the address, the token (RAY_AUTH_TOKEN) and that the Ray versions are equal"
        raise DarkroomError(what, where=address, remedy=remedy) from error
    if not address:
        _watch_ray()
    return True


def _watch_ray() -> None:
    """End this process with an error when a process of the local Ray has ended.

    By itself, Ray waits for up to a minute, and ends this process with messages of its own.
    """
    import psutil
    import ray

    parts = [part for part in psutil.Process().children() if part.name() in RAY_PROCESSES]

    def watch() -> None:
        while all(map(is_running, parts)):
            time.sleep(RAY_POLL_SECONDS)
        time.sleep(RAY_POLL_SECONDS)  # it may be shutting down
        if ray.is_initialized():
            what = "error: Ray: a process of the local Ray has ended"
            print(
                f"{what}\n  -> the same command continues from the last checkpoint",
                file=sys.stderr,
                flush=True,
            )
            ray_has_ended.set()
            os.kill(os.getpid(), signal.SIGINT)  # Ray aborts on SIGTERM
            time.sleep(RAY_GRACE_SECONDS)  # for what is done at the end, such as the state of the run
            os._exit(EXIT_FAILED)

    Thread(target=watch, daemon=True).start()


def is_running(process: "psutil.Process") -> bool:
    """Whether the process is still running. A zombie is not."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _ray_folder() -> str:
    """A new private folder for the files of a local Ray, which is removed when this process ends.

    Folders that killed processes of this user left are removed, too. Raises ``BadInput`` if Ray would wait in
    vain for its processes.
    """
    import psutil

    if 0 < (allowed := address_space()) < RAY_BYTES:
        what = (
            f"a process may use {allowed / 2**30:.1f} GiB of virtual memory, Ray needs {RAY_BYTES / 2**30:g}"
        )
        raise BadInput(what, where="Ray", remedy="ulimit -v unlimited; or DARKROOM_WORKERS=auto")
    base = Path(tempfile.gettempdir())
    if len(str(base)) > MAX_SOCKET_FOLDER:
        base = Path("/tmp")
    for left in base.glob("ray-*-*"):
        with suppress(OSError, ValueError):
            if left.stat().st_uid == os.getuid() and not psutil.pid_exists(int(left.name.split("-")[1])):
                shutil.rmtree(left, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=f"ray-{os.getpid()}-", dir=base)

    def remove() -> None:
        import ray

        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return f"{folder}/s"  # Ray opens its own folder to all users


def in_thread(function: Callable[[], T]) -> Future[T]:
    """Call ``function`` in a daemon thread: if it hangs, the process can end all the same."""
    future = Future[T]()

    def call() -> None:
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)

    Thread(target=call, daemon=True).start()
    return future


def worker_python() -> dict[str, str]:
    """The runtime environment of local Ray workers: empty, unless the path of Python must be quoted.

    Ray 2.60 starts workers with a shell command in which that path is not quoted.
    """
    quoted = shlex.quote(sys.executable)
    return {} if quoted == sys.executable else {"py_executable": quoted}


def collect_garbage_rarely() -> None:
    """Make the imports and the end of this process faster.

    The imports of PyTorch, MLflow and Ray create a million objects that live until the process ends. By
    default, the garbage collector visits them hundreds of times, and once more at the end.
    """
    gc.set_threshold(GC_THRESHOLD)
    atexit.register(gc.freeze)


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
    global left_at
    if time.monotonic() - left_at > ECHO_SECONDS:
        left_at = time.monotonic()
        sys.exit(128 + number)
