"""``dvc repro`` with several stages at once, and one call per project at a time.

It repairs files of DVC that a killed process left damaged, and passes signals on to all processes of a stage.
"""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
from dvc.exceptions import DvcException
from dvc.lock import Lock
from dvc.repo import Repo
from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro
from dvc.utils.serialize import dumps_yaml, parse_yaml_for_update

from pipeline.environment import Environment, for_child
from pipeline.errors import EXIT_BUSY, EXIT_FAILED, BadInput, DarkroomError
from pipeline.files import remove, write_text
from pipeline.git import git
from pipeline.limits import LESS_MEMORY, cpu_count, oom_kills, out_of_memory
from pipeline.process import DVC, die_with_parent, exclusive, is_running
from pipeline.tracking.dvc_lock import RWLOCK, cache_folder, locked_stages, read_rwlock

REPRO = (*DVC, "--wait-for-lock", "repro")  # it reads, changes and writes dvc.lock while it holds that lock
FAILURE = re.compile(
    r"ERROR: .*(?:is busy, it is being blocked by|Unable to acquire lock|exited with (-?\d+))"
)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TICK_SECONDS, GRACE_SECONDS = 0.1, 60.0
MAX_ATTEMPTS = 6  # to start a stage that another process holds (exit code 75), with pauses of 1, 2, 4 ... s
# Where a kill -9 leaves temporary files and folders; their names have the process id and 8 characters.
TEMPORARY = ("", "models", "history", "data", "data/processed", "metrics", "reports", ".darkroom/tracking")
# Another DVC, such as an experiment outside the workspace, may be writing to the cache. It changes the
# temporary file of an object all the time, and an entry of the run cache has its file within an instant.
OLD_OBJECT_SECONDS, OLD_ENTRY_SECONDS = 600.0, 3.0
OWNER = re.compile(r"\..+\.(\d+)\.\w{8}(\.\w+)?")


class _Stage:
    """A stage and the child process that runs it. Without a name: one plain ``dvc repro`` of all stages."""

    def __init__(self, name: str, needs: list[str], arguments: list[str]) -> None:
        self.name, self.needs, self.arguments = name, needs, arguments
        self.state = "waiting"  # then running; then ran, restored, unchanged, failed or not started
        self.attempts, self.began, self.seconds, self.resume_at = 0, 0.0, 0.0, 0.0

    def start(self, root: Path) -> None:
        """Start the child, in the main thread: ``die_with_parent`` refers to the thread that starts it."""
        options: dict[str, Any] = {"cwd": root, "start_new_session": True, "preexec_fn": die_with_parent}
        if self.name:
            options |= {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "errors": "replace"}
            options["stderr"] = subprocess.STDOUT
        env = for_child({"PYTHONUNBUFFERED": "1"})
        self.process = subprocess.Popen([*REPRO, *self.arguments], env=env, **options)
        self.state, self.outcome, self.code, self.kill_at = "running", "unchanged", EXIT_FAILED, 0.0
        self.began, self.attempts = self.began or time.monotonic(), self.attempts + 1
        self.reader = Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            if line.startswith(f"Running stage '{self.name}'"):
                self.outcome = "ran"
            elif line.startswith(f"Stage '{self.name}' is cached"):
                self.outcome = "restored"
            elif found := FAILURE.match(line):
                code = int(found[1] or EXIT_BUSY)
                self.code = code if code > 0 else 128 - code
            with suppress(OSError):  # stdout is closed; the stage continues
                print(f"{self.name} | {line.rstrip()}\n", end="", flush=True)

    def poll(self, number: int) -> None:
        """Update the state. After signal ``number``, or if DVC ended before its stage, end the group."""
        ended, now = self.process.poll() is not None, time.monotonic()
        if ended and not any(_is_in_group(process, self.process.pid) for process in psutil.process_iter()):
            self.reader.join(5)
            self.state = "failed" if self.process.returncode else self.outcome
            self.seconds = now - self.began
            is_busy = self.state == "failed" and self.code == EXIT_BUSY
            if is_busy and self.attempts < MAX_ATTEMPTS and not number:
                self.state, self.resume_at = "waiting", now + 2 ** (self.attempts - 1)
        elif number or ended:
            first = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
            later = signal.SIGKILL if now > self.kill_at else 0  # 0 sends nothing
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, later if self.kill_at else first)
            self.kill_at = self.kill_at or now + GRACE_SECONDS


def _is_in_group(process: psutil.Process, group: int) -> bool:
    with suppress(psutil.Error, ProcessLookupError):
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    return False


def repro(
    environment: Environment, targets: list[str], jobs: int = 1, force: bool = False, cores: int = 0
) -> None:
    """Bring ``targets`` up to date (none: every stage of dvc.yaml), at most ``jobs`` stages at once.

    ``cores``: 0 for the number of this machine. Raises ``DarkroomError`` with the exit code of the command
    that failed, or 75 if another call is running; ``SystemExit`` with 128 + n after signal n.
    """
    root, dvc_lock, options = environment.root, environment.root / "dvc.lock", ["--force"] * force
    if not ((root / "dvc.yaml").is_file() and (root / ".dvc").is_dir()):
        remedy = "run from the project's root"
        raise BadInput("no DVC project with a dvc.yaml", where=str(root), remedy=remedy)
    (root / ".dvc/tmp").mkdir(exist_ok=True)
    dvc_is_idle = Lock(str(root / ".dvc/tmp/lock"), wait=True, friendly=True)
    with exclusive(root / ".darkroom/repro.lock", "another `darkroom repro` runs here"):
        with dvc_is_idle:
            known = _repair(root, dvc_lock)
        if jobs == 1:
            return _run_all(root, {"": _Stage("", [], [*options, "--", *targets])}, 1, 1)
        plan = _plan(root, targets)
        arguments = [*options, "--single-item", "--"]
        stages = {name: _Stage(name, needs, [*arguments, name]) for name, needs in plan.items()}
        try:
            _run_all(root, stages, jobs, _max_trainings(environment, plan, jobs, cores))
        finally:
            with dvc_is_idle, suppress(FileNotFoundError, DvcException):
                _sort_new_stages(dvc_lock, [name for name in plan if name not in known])


def _sort_new_stages(dvc_lock: Path, names: list[str]) -> None:
    """Move the stages ``names`` to the end of dvc.lock in this order, as a serial ``dvc repro`` adds them."""
    content = parse_yaml_for_update(dvc_lock.read_text(encoding="utf-8"), dvc_lock)
    if added := [name for name in names if name in content.get("stages", {})]:
        for name in added:
            content["stages"].move_to_end(name)
        write_text(dvc_lock, dumps_yaml(content))


def _run_all(root: Path, stages: dict[str, _Stage], jobs: int, max_trainings: int) -> None:
    """Run each stage after those it needs. Raises as ``repro`` does."""
    received, num_killed = list[int](), oom_kills()  # signals, and kills by the kernel
    handlers = {
        number: signal.signal(number, lambda *arguments: received.append(arguments[0]))
        for number in SIGNALS
        if signal.getsignal(number) != signal.SIG_IGN
    }
    unfinished = list(stages.values())
    while unfinished:
        for stage in unfinished:
            if stage.state == "running":
                stage.poll(received[0] if received else 0)
            elif not received:
                _start_if_possible(root, stage, stages, jobs, max_trainings)
        unfinished = [
            stage
            for stage in stages.values()
            if stage.state == "running" or (stage.state == "waiting" and not received)
        ]
        time.sleep(TICK_SECONDS)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for stage in filter(lambda each: each.name, stages.values()):
        print(f"{stage.name}: {stage.state}" + f", {stage.seconds:.1f} s" * (stage.attempts > 0), flush=True)
    if received:
        sys.exit(128 + received[0])
    if failed := [stage for stage in stages.values() if stage.state == "failed"]:
        where, code = ", ".join(stage.name or "dvc repro" for stage in failed), failed[0].code
        # Only the code of a stage that has a name is known; 137: ended with SIGKILL.
        may_be_killed = any(stage.code == 137 or not stage.name for stage in failed)
        what, remedy = f"failed with exit code {code}", "see above; the same command continues"
        if may_be_killed and oom_kills() > num_killed:  # perhaps a process of another command
            what, remedy = f"{what}; meanwhile {out_of_memory()}", f"{remedy}. For memory: {LESS_MEMORY}"
        raise DarkroomError(what, where=where, remedy=remedy, exit_code=code)


def _start_if_possible(
    root: Path, stage: _Stage, stages: dict[str, _Stage], jobs: int, max_trainings: int
) -> None:
    needed = {stages[name].state for name in stage.needs}
    running = [name for name, other in stages.items() if other.state == "running"]
    num_trainings = sum(name.startswith("train-") for name in running)
    is_full = len(running) >= jobs or (stage.name.startswith("train-") and num_trainings >= max_trainings)
    if needed & {"failed", "not started"}:
        stage.state = "not started"
    elif not is_full and not needed & {"waiting", "running"} and time.monotonic() >= stage.resume_at:
        stage.start(root)


def _repair(root: Path, dvc_lock: Path) -> list[str]:
    """Repair what a kill -9 left: damaged files of DVC, temporary folders. Returns the stages in dvc.lock."""
    if (rwlock := root / RWLOCK).exists():
        with Lock(f"{rwlock}.lock", wait=True):
            _repair_rwlock(rwlock)
    if locked_stages(dvc_lock) is None:
        os.replace(dvc_lock, f"{dvc_lock}.broken")
        result = "removed"
        if last := git("show", "HEAD:./dvc.lock", cwd=root, check=False):
            write_text(dvc_lock, f"{last}\n")
            result = "restored from HEAD"
        if locked_stages(dvc_lock) is None:
            dvc_lock.unlink()
            result = "removed"
        print(f"dvc.lock was broken: kept as dvc.lock.broken, {result}", flush=True)
    for path in (root / ".dvc/cache").glob("files/md5/*/.*.tmp"):
        if _age(path) > OLD_OBJECT_SECONDS:
            remove(path)
    for folder in cache_folder(root).glob("runs/*/*"):  # DVC fails at each later call if one has no file
        if all(path.suffix == ".tmp" for path in folder.glob("*")):
            time.sleep(max(0.0, OLD_ENTRY_SECONDS - _age(folder)))
            for path in folder.glob("*.tmp"):
                remove(path)
            with suppress(OSError):  # it has a file by now
                folder.rmdir()
    for place in TEMPORARY:
        for path in (root / place).glob(".*"):
            owner = OWNER.fullmatch(path.name)
            with suppress(FileNotFoundError):  # its owner has just renamed it
                if owner and not _is_alive(int(owner[1]), path.stat().st_mtime):
                    remove(path)
    return list(locked_stages(dvc_lock) or {})


def _age(path: Path) -> float:
    """Seconds since the last change; none if it is gone."""
    with suppress(OSError):
        return time.time() - path.stat().st_mtime
    return 0.0


def _repair_rwlock(path: Path) -> None:
    """Remove the list of paths that DVC's processes use if it is damaged, else those of ended processes.

    A killed process stays in the process table until its parent reads its exit code. DVC takes it for a
    running one and waits for it.
    """
    used = read_rwlock(path)
    if used is None:
        return path.unlink()
    used["write"] = {key: by for key, by in used["write"].items() if _is_alive(by["pid"])}
    for key, several in used["read"].items():
        used["read"][key] = [by for by in several if _is_alive(by["pid"])]
    write_text(path, json.dumps(used))


def _is_alive(pid: int, began: float = math.inf) -> bool:
    """Whether the process runs and had started by the time ``began``: process ids are reused."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return is_running(process) and process.create_time() <= began + 1
    return False


def _plan(root: Path, targets: list[str]) -> dict[str, list[str]]:
    """The stages that DVC would run, in the order of a serial run, each with the stages it needs."""
    try:
        with Repo(str(root)) as repo:
            graph = get_active_graph(repo.index.graph)
            steps = plan_repro(graph, collect_stages(repo, targets or ["dvc.yaml"]))
            return {step.addressing: [need.addressing for need in graph.successors(step)] for step in steps}
    except DvcException as error:
        raise BadInput(str(error), where="dvc.yaml", remedy="name a stage or an output of it") from error


def _max_trainings(environment: Environment, plan: Iterable[str], jobs: int, cores: int) -> int:
    """How many trainings may run at once. Too many on one machine slow each other down."""
    if environment.ray_address:
        return jobs
    wanted = min(jobs, sum(name.startswith("train-") for name in plan))
    workers = 1 if environment.workers == "auto" else environment.workers
    cores = cores or cpu_count()
    threads = environment.threads * workers or cores
    limit = max(1, cores // threads)
    if limit < wanted:
        fewer = max(1, cores // workers // wanted)
        possible = cores // (fewer * workers)
        hint = f"; DARKROOM_THREADS={fewer} would allow {possible}" if possible > limit else ""
        what = f"{limit} training{'s' * (limit > 1)} at a time"
        print(f"{what}: each uses {threads} threads of {cores} cores{hint}", flush=True)
    return limit
