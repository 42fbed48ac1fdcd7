"""``dvc repro`` with independent stages side by side: one at a time in a project, no process and no broken book of DVC's left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from re import compile as pattern
from threading import Thread
from typing import Any

import psutil
from dvc.exceptions import DvcException
from dvc.lock import Lock
from dvc.repo import Repo
from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from dvc.utils.serialize import dumps_yaml, parse_yaml_for_update
from dvc.utils.strictyaml import load
from filelock import FileLock, Timeout

from pipeline.environment import Environment, for_child
from pipeline.errors import EXIT_BUSY, EXIT_FAILED, BadInput, DarkroomError
from pipeline.files import write_text
from pipeline.process import DVC, die_with_parent

REPRO = (*DVC, "--wait-for-lock", "repro")  # it reads, changes and writes dvc.lock while it holds that lock
PIPES: dict[str, Any] = {
    "stdin": subprocess.DEVNULL,
    "stdout": subprocess.PIPE,
    "stderr": subprocess.STDOUT,
    "errors": "replace",
}
FAILURE = pattern(r"ERROR: .*(?:is busy, it is being blocked by|Unable to acquire lock|exited with (-?\d+))")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TICK_SECONDS, GRACE_SECONDS, TRIES = (
    0.1,
    60.0,
    6,
)  # of a stage that another process holds (75), with pauses of 1, 2, 4 ... seconds
LEFT = (
    "models/.*",
    "history/.*",
    "data/.raw",
    "data/.processed",
    ".plots",
)  # by pipeline.files and a kill -9; and 8 characters


class _Stage:
    """A stage of the plan and the child that runs it; without a name one plain ``dvc repro`` runs them all."""

    def __init__(self, name: str, needs: list[str], arguments: list[str]) -> None:
        self.name, self.needs, self.arguments = name, needs, arguments
        self.state = "waiting"  # then running; then ran, restored, unchanged, failed or not started
        self.tries, self.began, self.seconds, self.resume = 0, 0.0, 0.0, 0.0

    def start(
        self, root: Path
    ) -> None:  # by the main thread: the kernel ends children with the thread that started them
        options: dict[str, Any] = {"cwd": root, "start_new_session": True, "preexec_fn": die_with_parent} | (
            PIPES if self.name else {}
        )
        self.process = subprocess.Popen(
            [*REPRO, *self.arguments], env=for_child({"PYTHONUNBUFFERED": "1"}), **options
        )
        self.state, self.told, self.code, self.kill = "running", "unchanged", EXIT_FAILED, 0.0
        self.began, self.tries = self.began or time.monotonic(), self.tries + 1
        self.reader = Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            if line.startswith(f"Running stage '{self.name}'"):
                self.told = "ran"
            elif line.startswith(f"Stage '{self.name}' is cached"):
                self.told = "restored"
            elif found := FAILURE.match(line):
                code = int(found[1] or EXIT_BUSY)
                self.code = code if code > 0 else 128 - code
            with suppress(OSError):  # nobody listens any more; the work goes on
                print(f"{self.name} | {line.rstrip()}\n", end="", flush=True)

    def look_after(self, number: int) -> None:
        """Notice its end; after a signal, or where DVC ended before its stage, end the whole group."""
        ended, now = self.process.poll() is not None, time.monotonic()
        if ended and not any(_is_of(self.process.pid, process) for process in psutil.process_iter()):
            self.reader.join(5)
            self.state, self.seconds = "failed" if self.process.returncode else self.told, now - self.began
            if self.state == "failed" and self.code == EXIT_BUSY and self.tries < TRIES and not number:
                self.state, self.resume = "waiting", now + 2 ** (self.tries - 1)
        elif number or ended:
            first = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
            with suppress(ProcessLookupError):
                os.killpg(
                    self.process.pid, first if not self.kill else signal.SIGKILL if now > self.kill else 0
                )
            self.kill = self.kill or now + GRACE_SECONDS


def _is_of(group: int, process: psutil.Process) -> bool:
    with suppress(psutil.Error, ProcessLookupError):
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    return False


def repro(
    environment: Environment, targets: list[str], jobs: int = 1, force: bool = False, cores: int = 0
) -> None:
    """Bring ``targets`` (none: every stage of dvc.yaml) up to date, at most ``jobs`` stages at once; ``cores``: 0 for this machine's.

    Raises ``DarkroomError`` with the failed command's exit code, or 75 where another one is at it; ``SystemExit`` 128 + n by a signal.
    """
    root, book, options = environment.root, environment.root / "dvc.lock", ["--force"] * force
    if not ((root / "dvc.yaml").is_file() and (root / ".dvc").is_dir()):
        raise BadInput(
            "no DVC project with a dvc.yaml", where=str(root), remedy="run from the project's root"
        )
    (root / ".dvc/tmp").mkdir(exist_ok=True)
    books = Lock(str(root / ".dvc/tmp/lock"), wait=True, friendly=True)
    try:
        with FileLock(root / ".darkroom/repro.lock", timeout=0):
            with books:
                known = _mend(root, book, time.time())
            if jobs == 1:
                return _work(root, {"": _Stage("", [], [*options, "--", *targets])}, 1, 1)
            plan = _plan(root, targets)
            stages = {
                name: _Stage(name, needs, [*options, "--single-item", "--", name])
                for name, needs in plan.items()
            }
            try:
                _work(root, stages, jobs, _limit(environment, plan, jobs, cores))
            finally:
                with (
                    books,
                    suppress(FileNotFoundError, DvcException),
                ):  # DVC alone would have added the stages in the plan's order
                    after = parse_yaml_for_update(book.read_text(encoding="utf-8"), book)
                    for name in (
                        added := [
                            name for name in plan if name in after.get("stages", {}) and name not in known
                        ]
                    ):
                        after["stages"].move_to_end(name)
                    if added:
                        write_text(book, dumps_yaml(after))
    except Timeout:
        error = DarkroomError(
            "another `darkroom repro` runs here", where=str(root), remedy="wait for it, or end it"
        )
        error.exit_code = EXIT_BUSY
        raise error from None


def _work(root: Path, stages: dict[str, _Stage], jobs: int, limit: int) -> None:
    """Run everything, each stage after those it needs. Raises as ``repro`` does."""
    heard: list[int] = []
    usual = {
        each: signal.signal(each, lambda *told: heard.append(told[0]))
        for each in SIGNALS
        if signal.getsignal(each) != signal.SIG_IGN
    }
    while any(
        stage.state == "running" or (stage.state == "waiting" and not heard) for stage in stages.values()
    ):
        for stage in stages.values():
            needed = {stages[name].state for name in stage.needs}
            running = [name for name, other in stages.items() if other.state == "running"]
            full = len(running) >= jobs or (
                stage.name.startswith("train-")
                and sum(name.startswith("train-") for name in running) >= limit
            )
            if stage.state == "running":
                stage.look_after(heard[0] if heard else 0)
            elif stage.state == "waiting" and needed & {"failed", "not started"}:
                stage.state = "not started"
            elif stage.state == "waiting" and not (
                heard or full or needed & {"waiting", "running"} or time.monotonic() < stage.resume
            ):
                stage.start(root)
        time.sleep(TICK_SECONDS)
    for number, handler in usual.items():
        signal.signal(number, handler)
    for stage in [each for each in stages.values() if each.name]:
        print(f"{stage.name}: {stage.state}" + f", {stage.seconds:.1f} s" * (stage.tries > 0), flush=True)
    if heard:
        sys.exit(128 + heard[0])
    if failed := [stage for stage in stages.values() if stage.state == "failed"]:
        where = ", ".join(stage.name or "dvc repro" for stage in failed)
        error = DarkroomError(
            f"failed with exit code {failed[0].code}",
            where=where,
            remedy="see above; the same command goes on",
        )
        error.exit_code = failed[0].code
        raise error


def _mend(root: Path, book: Path, now: float) -> list[str]:
    """Put right what a kill -9 left: half-written books of DVC's, and temporary folders. The stages that dvc.lock knows."""
    users = root / ".dvc/tmp/rwlock"
    with suppress(FileNotFoundError):
        try:
            json.loads(users.read_bytes())
        except ValueError:
            users.unlink()
    if _recorded(book) is None:
        os.replace(book, f"{book}.broken")
        last = subprocess.run(
            ["git", "show", f"HEAD:./{book.name}"], cwd=root, capture_output=True, text=True, check=False
        ).stdout
        write_text(book, last)
        if _recorded(book) is None:
            book.unlink()
        print(
            f"{book.name} was broken: kept as {book.name}.broken, {'restored from HEAD' if book.exists() else 'removed'}",
            flush=True,
        )
    for path in (
        found
        for place in LEFT
        for found in root.glob(f"{place}.{'[a-z0-9_]' * 8}")
        if found.stat().st_mtime < now
    ):
        shutil.rmtree(path, ignore_errors=True)
    return _recorded(book) or []


def _recorded(book: Path) -> list[str] | None:
    """The stages in dvc.lock; None where it is broken."""
    with suppress(DvcException):
        return list(load(book, COMPILED_LOCKFILE_SCHEMA)[0].get("stages", {})) if book.is_file() else []
    return None


def _plan(root: Path, targets: list[str]) -> dict[str, list[str]]:
    """DVC's own plan, with frozen stages and templates resolved: each stage and those it needs, in the order of a serial run."""
    try:
        with Repo(str(root)) as repo:
            graph = get_active_graph(repo.index.graph)
            steps = plan_repro(graph, collect_stages(repo, targets or ["dvc.yaml"]))
            return {
                stage.addressing: [needed.addressing for needed in graph.successors(stage)] for stage in steps
            }
    except DvcException as error:
        raise BadInput(str(error), where="dvc.yaml", remedy="name a stage or an output of it") from error


def _limit(environment: Environment, plan: Iterable[str], jobs: int, cores: int) -> int:
    """How many trainings at once: on one machine they share its cores, and are much slower where they fight for them."""
    wanted = min(jobs, sum(name.startswith("train-") for name in plan))
    workers = 1 if environment.workers == "auto" else environment.workers
    cores = cores or (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    threads = environment.threads * workers or cores
    limit = jobs if environment.ray_address else max(1, cores // threads)
    if limit < wanted:
        fewer = max(1, cores // workers // wanted)
        more = (
            f"; DARKROOM_THREADS={fewer} would allow {n}" if (n := cores // (fewer * workers)) > limit else ""
        )
        print(
            f"{limit} training{'s' * (limit > 1)} at a time: each uses {threads} threads of {cores} cores{more}",
            flush=True,
        )
    return limit
