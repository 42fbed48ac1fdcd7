"""The git worktree in which new models are trained. It shares the project's DVC cache."""

import json
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.environment import Environment, for_child
from pipeline.errors import BadInput, DarkroomError
from pipeline.process import DVC, die_with_parent

BRANCH = "retraining"
GIT_SECONDS, DVC_SECONDS, GRACE_SECONDS = 120, 6 * 3600, 90
# Without signatures and hooks: a scheduled run cannot enter a passphrase.
GIT = ("git", "-c", "commit.gpgsign=false", "-c", "core.hooksPath=/dev/null")
# Used if git has no identity configured.
IDENTITY = ("-c", "user.name=darkroom retrain", "-c", "user.email=darkroom@localhost")
COMMAND = (sys.executable, "-c", "from pipeline.cli import main; main()")


class Workspace:
    """The worktree ``tree`` of the project in ``root``. Only one process may use it at a time."""

    def __init__(self, environment: Environment) -> None:
        self.environment, self.root = environment, environment.root
        self.tree = self.root / ".darkroom/retraining/tree"

    def base(self, keep: bool = True) -> str:
        """The commit to start from, which has all accepted pictures.

        It is the current commit, or the branch 'retraining' if it is ahead. If both have new commits, they
        are merged in the worktree; with ``keep`` the branch is moved to the merge. Raises ``BadInput`` if
        they conflict.
        """
        head = self._try_git("rev-parse", "HEAD")
        tip = self._branch_tip()
        if not head:
            what, remedy = "is not a git repository with a commit", "git init; git add -A; git commit"
            raise BadInput(what, where=str(self.root), remedy=remedy)
        if not tip or self._is_ancestor(tip, head):
            return head
        if self._is_ancestor(head, tip):
            return tip
        merge = self._merge(tip, head)
        if not merge:
            what = f"the branch '{BRANCH}' and the current one have a merge conflict"
            raise BadInput(what, where=str(self.root), remedy=f"git merge {BRANCH}, and resolve it")
        if keep:
            self._git("update-ref", f"refs/heads/{BRANCH}", merge, tip)
        return merge

    def _branch_tip(self) -> str:
        return self._try_git("rev-parse", "--verify", "--quiet", f"refs/heads/{BRANCH}")

    def _merge(self, one: str, other: str) -> str:
        """The merge of two commits, made in the worktree; '' if they conflict."""
        self._check_out(one)
        command = [*GIT, "-c", "merge.ff=true", *self._identity(), "merge", "--quiet", "--no-edit", other]
        if _run(command, self.tree, GIT_SECONDS).returncode:
            self._try_git("merge", "--abort", where=self.tree)
            return ""
        return self._git("rev-parse", "HEAD", where=self.tree)

    def holds(self, commit: str) -> bool:
        """Whether the worktree exists and is at ``commit`` or at a later commit of a retraining."""
        return self._try_git("merge-base", commit, "HEAD", where=self.tree) == commit

    def prepare(self, commit: str, folder: str) -> None:
        """Check out ``commit`` in the worktree, with the cached outputs.

        ``folder`` has the accepted pictures; '' if there are none.
        """
        self._check_out(commit)
        if (self.root / ".dvc/config.local").is_file():
            shutil.copy(self.root / ".dvc/config.local", self.tree / ".dvc")
        for line in self._dvc("config", "--list", where=self.root).stdout.splitlines():
            key, _, value = line.partition("=")
            # A relative address in the file is relative to the project; DVC lists it as an absolute one.
            if key.startswith("remote.") and key.endswith(".url") and Path(value).is_absolute():
                self._dvc("config", "--local", key, value)
        self._dvc("config", "--local", "cache.dir", self._dvc("cache", "dir", where=self.root).stdout.strip())
        if folder and not (self.tree / f"{folder}.dvc").is_file():
            if (self.root / folder).exists():
                add = "" if (self.root / f"{folder}.dvc").is_file() else f"dvc add {folder} && "
                remedy = f"{add}git add {folder}.dvc && git commit -m 'the accepted pictures'"
                what = "these pictures are not tracked by DVC in the last commit"
                raise BadInput(what, where=folder, remedy=remedy)
            shutil.rmtree(self.tree / folder, ignore_errors=True)
        if self._dvc("checkout", "--quiet", "--force").returncode:
            self._dvc("pull", "--quiet", "--force", "--allow-missing")
        if folder and (self.tree / f"{folder}.dvc").is_file():
            self.run_dvc("checkout", "--quiet", "--force", f"{folder}.dvc")

    def _check_out(self, commit: str) -> None:
        """Check out ``commit`` in the worktree, also after a git command that was killed."""
        if self._try_git("rev-parse", "--show-toplevel", where=self.tree) == str(self.tree.resolve()):
            for lock in Path(self._git("rev-parse", "--absolute-git-dir", where=self.tree)).glob("*.lock"):
                lock.unlink(missing_ok=True)
        else:
            shutil.rmtree(self.tree, ignore_errors=True)
            self._git("worktree", "prune")
            self._git("worktree", "add", "--force", "--force", "--quiet", "--detach", str(self.tree), commit)
        self._try_git("merge", "--abort", where=self.tree)
        self._git("checkout", "--quiet", "--force", "--detach", commit, where=self.tree)
        self._git("clean", "--quiet", "-fd", where=self.tree)

    def is_stale(self) -> bool:
        """Whether a stage would run because code or settings are newer than the models."""
        done = self._dvc("status", "--json")
        if done.returncode:
            raise _failed("dvc status", done, self.tree)
        return bool(json.loads(done.stdout or "{}"))

    def track(self, folder: str) -> None:
        """Track the pictures in ``folder`` with DVC."""
        self.run_dvc("add", "--quiet", folder)

    def repro(self, seconds: float, group: str) -> None:
        """Run ``darkroom repro`` in the worktree.

        Raises ``DarkroomError`` with its exit code, or if it takes longer than ``seconds``.
        """
        variables = {
            "DARKROOM_STORAGE": self.environment.remote or str(self.environment.storage),
            "MLFLOW_TRACKING_URI": self.environment.tracking_uri,
            "DARKROOM_GROUP": group,
            "PYTHONPATH": str(self.tree),
        }
        env = for_child(variables)
        process = subprocess.Popen([*COMMAND, "repro"], cwd=self.tree, env=env, preexec_fn=die_with_parent)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            where = "params.yaml: retrain.deadline_hours"
            remedy = "the next call continues from the last checkpoint; or allow more hours"
            raise DarkroomError("the deadline has passed", where=where, remedy=remedy) from None
        finally:
            if process.poll() is None:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE_SECONDS)
                process.kill()
        if code:
            what = f"darkroom repro ended with exit code {code}"
            error = DarkroomError(what, where=str(self.tree), remedy="see its messages above")
            error.exit_code = code if code > 0 else 128 - code
            raise error

    def push(self) -> None:
        """Push the worktree's data and outputs to DVC's default remote."""
        self.run_dvc("push", "--quiet")

    def commit(self, message: str) -> str:
        """Commit the changes in the worktree, if there are any. Returns the commit."""
        self._git("add", "--all", where=self.tree)
        if self._try_git("status", "--porcelain", where=self.tree):
            self._git(*self._identity(), "commit", "--quiet", "--no-verify", "-m", message, where=self.tree)
        return self._git("rev-parse", "HEAD", where=self.tree)

    def publish(self, commit: str, in_place: bool) -> str:
        """Move the branch 'retraining' to ``commit``, or the current branch if ``in_place``.

        Returns a text that names the branch.
        """
        current = self._try_git("symbolic-ref", "--quiet", "--short", "HEAD")
        if current and (in_place or current == BRANCH) and self._fast_forward(commit):
            failed = self._dvc("checkout", "--quiet", where=self.root).returncode  # keeps unsaved changes
            why = ", but dvc checkout could not update all outputs; see: dvc status" if failed else ""
            return f"on {current}{why}"
        tip = self._branch_tip()
        why = ": the current branch has changes of its own" if in_place else ""
        if tip and self._is_ancestor(commit, tip):
            return f"on the branch {BRANCH}{why}"
        is_ahead = not tip or self._is_ancestor(tip, commit)  # else a user has committed to the branch
        target = commit if is_ahead else self._merge(commit, tip)
        if target and current != BRANCH:
            self._git("update-ref", f"refs/heads/{BRANCH}", target, *([tip] if tip else []))
            return f"on the branch {BRANCH}{why}"
        own = f"{BRANCH}-{commit[:8]}"
        self._git("update-ref", f"refs/heads/{own}", commit)
        why = f"because {BRANCH} conflicts with it or is checked out"
        return f"on the branch {own}, {why}; run: git merge {own}"

    def _fast_forward(self, commit: str) -> bool:
        return self._is_ancestor(commit, "HEAD") or self._succeeds("merge", "--ff-only", "--quiet", commit)

    def _is_ancestor(self, one: str, other: str) -> bool:
        return self._succeeds("merge-base", "--is-ancestor", one, other)

    def run_dvc(self, *arguments: str) -> None:
        """Run a DVC command in the worktree. Raises ``DarkroomError`` with its error message."""
        done = self._dvc(*arguments)
        if done.returncode:
            raise _failed(f"dvc {arguments[0]}", done, self.tree)

    def _dvc(self, *arguments: str, where: Path | None = None) -> subprocess.CompletedProcess[str]:
        return _run([*DVC, *arguments], where or self.tree, DVC_SECONDS)

    def _git(self, *arguments: str, where: Path | None = None) -> str:
        done = _run([*GIT, *arguments], where or self.root, GIT_SECONDS)
        if done.returncode:
            raise _failed(f"git {arguments[0]}", done, where or self.root)
        return done.stdout.strip()

    def _try_git(self, *arguments: str, where: Path | None = None) -> str:
        """The output of a git command; '' if it fails."""
        place = where or self.root
        done = _run([*GIT, *arguments], place, GIT_SECONDS) if place.is_dir() else None
        return done.stdout.strip() if done and not done.returncode else ""

    def _succeeds(self, *arguments: str) -> bool:
        return not _run([*GIT, *arguments], self.root, GIT_SECONDS).returncode

    def _identity(self) -> tuple[str, ...]:
        return () if self._try_git("config", "user.email") else IDENTITY


def _failed(what: str, done: subprocess.CompletedProcess[str], where: Path) -> DarkroomError:
    lines = done.stderr.strip().splitlines() or ["without a message"]
    message = next((line for line in lines if line.startswith(("fatal:", "error:", "ERROR:"))), lines[-1])
    remedy = "correct this and repeat the command"
    return DarkroomError(f"{what} failed: {message[:300]}", where=str(where), remedy=remedy)


def _run(command: list[str], where: Path, seconds: int) -> subprocess.CompletedProcess[str]:
    options: dict[str, Any] = {
        "capture_output": True,
        "text": True,
        "timeout": seconds,
        "check": False,
        "preexec_fn": die_with_parent,
    }
    try:
        return subprocess.run(command, cwd=where, env=for_child({}), **options)
    except subprocess.TimeoutExpired:
        what = f"took more than {seconds:,} s: {' '.join(command[:8])}"
        raise DarkroomError(what, where=str(where), remedy="repeat the command; it continues") from None
