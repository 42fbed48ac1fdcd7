"""Where a candidate is made: a git worktree of the project, with DVC's cache shared. The project itself stays as it is until the end."""

import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from pipeline.environment import Environment, for_child
from pipeline.errors import EXIT_BUSY, BadInput, DarkroomError
from pipeline.process import die_with_parent

BRANCH = "retraining"
GIT_SECONDS, DVC_SECONDS, GRACE_SECONDS = 120, 3600, 90
IDENTITY = ("-c", "user.name=darkroom retrain", "-c", "user.email=darkroom@localhost")  # where git knows no other
COMMAND = (sys.executable, "-c", "from pipeline.cli import main; main()")


class Workspace:
    """The worktree ``tree`` of the project in ``root``."""

    def __init__(self, environment: Environment) -> None:
        self.environment, self.root = environment, environment.root
        self.tree = self.root / ".darkroom/retraining/tree"

    def base(self) -> str:
        """The commit to start from: the branch 'retraining' where it goes on from the current one, else the current one."""
        head, tip = self._git("rev-parse", "HEAD"), self._answer("rev-parse", "--verify", "--quiet", f"refs/heads/{BRANCH}")
        if not head:
            raise BadInput("is no git repository with a commit", where=str(self.root), remedy="git init; git add -A; git commit")
        return tip if tip and self._succeeds("merge-base", "--is-ancestor", head, tip) else head

    def holds(self, commit: str) -> bool:
        """Whether the worktree is one, and of ``commit`` or of a commit of ours upon it."""
        return self.tree.is_dir() and self._answer("merge-base", commit, "HEAD", where=self.tree) == commit

    def prepare(self, commit: str, folder: str) -> None:
        """Bring the worktree to ``commit``: its files, the pictures in ``folder`` and the outputs that DVC has."""
        if self._answer("rev-parse", "--show-toplevel", where=self.tree) != str(self.tree):
            shutil.rmtree(self.tree, ignore_errors=True)
            self._git("worktree", "prune")
            self._git("worktree", "add", "--force", "--quiet", "--detach", str(self.tree), commit)
        self._git("checkout", "--quiet", "--force", "--detach", commit, where=self.tree)
        self._git("clean", "--quiet", "-fd", where=self.tree)
        for name in ("config", "config.local"):
            if (self.root / ".dvc" / name).is_file():
                shutil.copy(self.root / ".dvc" / name, self.tree / ".dvc" / name)
        self._dvc("config", "--local", "cache.dir", self._dvc("cache", "dir", where=self.root).stdout.strip())
        if (self.tree / f"{folder}.dvc").is_file():
            if self._dvc("checkout", "--quiet", "--force", f"{folder}.dvc").returncode:
                self.run_dvc("pull", "--quiet", "--force", f"{folder}.dvc")
        elif (self.root / folder).exists():
            raise BadInput("is not tracked by DVC", where=folder, remedy=f"dvc add {folder}; git add {folder}.dvc; git commit")
        else:
            shutil.rmtree(self.tree / folder, ignore_errors=True)
        self._dvc("checkout", "--quiet", "--force", "--allow-missing")  # what it lacks is made anew

    def is_stale(self) -> bool:
        """Whether a stage would run: code or settings are newer than the models."""
        return bool(self._dvc("status", "--quiet").returncode)

    def track(self, folder: str) -> None:
        """Put the pictures in ``folder`` under DVC."""
        self.run_dvc("add", "--quiet", folder)

    def repro(self, seconds: float, group: str) -> None:
        """``darkroom repro`` there. Raises ``DarkroomError`` with its exit code, or where it takes longer than ``seconds``."""
        here = {
            "DARKROOM_STORAGE": self.environment.remote or str(self.environment.storage),
            "MLFLOW_TRACKING_URI": self.environment.tracking_uri,
            "DARKROOM_GROUP": group,
            "PYTHONPATH": str(self.tree),
        }
        process = subprocess.Popen([*COMMAND, "repro"], cwd=self.tree, env=for_child(here), preexec_fn=die_with_parent)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            remedy = "the next call goes on from the last checkpoint; give it more hours, or less to do"
            raise DarkroomError("the deadline has passed", where="params.yaml: retrain.deadline_hours", remedy=remedy) from None
        finally:
            if process.poll() is None:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE_SECONDS)
                process.kill()
        if code:
            error = DarkroomError(f"darkroom repro failed with exit code {code}", where=str(self.tree), remedy="see above")
            error.exit_code = code if code in (EXIT_BUSY, 130, 143) else DarkroomError.exit_code
            raise error

    def push(self) -> None:
        """Send what the worktree's files name to DVC's default remote."""
        self.run_dvc("push", "--quiet")

    def commit(self, message: str) -> str:
        """Commit what was made, if anything changed; the commit."""
        self._git("add", "--all", where=self.tree)
        if self._answer("status", "--porcelain", where=self.tree):
            known = () if self._answer("config", "user.email") else IDENTITY
            self._git(*known, "commit", "--quiet", "--no-verify", "-m", message, where=self.tree)
        return self._git("rev-parse", "HEAD", where=self.tree)

    def publish(self, commit: str, in_place: bool) -> str:
        """Put ``commit`` onto the branch 'retraining', or ``in_place`` onto the current one; says where it is."""
        if in_place:
            if self._succeeds("merge-base", "--is-ancestor", commit, "HEAD") or self._succeeds("merge", "--ff-only", "--quiet", commit):
                if self._dvc("checkout", "--quiet", where=self.root).returncode:  # it does not overwrite what nobody has saved
                    print("warning: dvc checkout left some outputs as they were: dvc status", flush=True)
                return "in place"
            print("the project has changes of its own: not touched", flush=True)
        self._git("update-ref", f"refs/heads/{BRANCH}", commit)
        return f"on the branch {BRANCH}"

    def run_dvc(self, *arguments: str) -> None:
        """A DVC command in the worktree. Raises ``DarkroomError`` with what it said."""
        done = self._dvc(*arguments)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise DarkroomError(
                f"dvc {arguments[0]} failed: {said[:300]}", where=str(self.tree), remedy="mend it; the same command goes on"
            )

    def _dvc(self, *arguments: str, where: Path | None = None) -> subprocess.CompletedProcess[str]:
        return _run([sys.executable, "-m", "dvc", *arguments], where or self.tree, DVC_SECONDS)

    def _git(self, *arguments: str, where: Path | None = None) -> str:
        done = _run(["git", *arguments], where or self.root, GIT_SECONDS)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise DarkroomError(
                f"git {arguments[0]} failed: {said[:300]}", where=str(where or self.root), remedy="git status; git worktree prune"
            )
        return done.stdout.strip()

    def _answer(self, *arguments: str, where: Path | None = None) -> str:
        """What git says, or nothing."""
        place = where or self.root
        done = _run(["git", *arguments], place, GIT_SECONDS) if place.is_dir() else None
        return done.stdout.strip() if done and not done.returncode else ""

    def _succeeds(self, *arguments: str) -> bool:
        return not _run(["git", *arguments], self.root, GIT_SECONDS).returncode


def _run(command: list[str], where: Path, seconds: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=where, env=for_child({}), capture_output=True, text=True, timeout=seconds, check=False)
