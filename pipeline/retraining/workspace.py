"""The git worktree in which new models are trained. It shares the project's DVC cache."""

import json
import shutil
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

from pipeline.environment import Environment, for_child
from pipeline.errors import BadInput, DarkroomError
from pipeline.git import add_worktree, git
from pipeline.process import DVC, die_with_parent, output

BRANCH = "retraining"
DVC_SECONDS, GRACE_SECONDS = 6 * 3600, 90
# Used if git has no identity configured.
IDENTITY = ("-c", "user.name=darkroom retrain", "-c", "user.email=darkroom@localhost")
COMMAND = (sys.executable, "-c", "from pipeline.cli import main; main()")


class Workspace:
    """The worktree ``tree`` of the project in ``root``. Only one process may use it at a time."""

    def __init__(self, environment: Environment) -> None:
        self.environment, self.root = environment, environment.root
        self.tree = self.root / ".darkroom/retraining/tree"
        self._in_root, self._in_tree = partial(git, cwd=self.root), partial(git, cwd=self.tree)

    def base(self, keep: bool = True) -> str:
        """The commit to start from, which has all accepted pictures.

        It is the current commit, or the branch 'retraining' if it is ahead. If both have new commits, they
        are merged in the worktree; with ``keep`` the branch is moved to the merge. Raises ``BadInput`` if
        they conflict.
        """
        head, tip = self._in_root("rev-parse", "HEAD", check=False), self._branch_tip()
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
            self._in_root("update-ref", f"refs/heads/{BRANCH}", merge, tip)
        return merge

    def holds(self, commit: str) -> bool:
        """Whether the worktree exists and is at ``commit`` or at a later commit of a retraining."""
        return self._in_tree("merge-base", commit, "HEAD", check=False) == commit

    def prepare(self, commit: str, folder: str) -> None:
        """Check out ``commit`` in the worktree, with the cached outputs.

        ``folder`` has the accepted pictures; '' if there are none.
        """
        self._check_out(commit)
        if (self.root / ".dvc/config.local").is_file():
            shutil.copy(self.root / ".dvc/config.local", self.tree / ".dvc")
        for line in self.dvc("config", "--list", cwd=self.root).splitlines():
            key, _, value = line.partition("=")
            # A relative address in the file is relative to the project; DVC lists it as an absolute one.
            if key.startswith("remote.") and key.endswith(".url") and Path(value).is_absolute():
                self.dvc("config", "--local", key, value)
        self.dvc("config", "--local", "cache.dir", self.dvc("cache", "dir", cwd=self.root))
        is_tracked = bool(folder) and (self.tree / f"{folder}.dvc").is_file()
        if folder and not is_tracked:
            if (self.root / folder).exists():
                add = "" if (self.root / f"{folder}.dvc").is_file() else f"dvc add {folder} && "
                remedy = f"{add}git add {folder}.dvc && git commit -m 'the accepted pictures'"
                what = "these pictures are not tracked by DVC in the last commit"
                raise BadInput(what, where=folder, remedy=remedy)
            shutil.rmtree(self.tree / folder, ignore_errors=True)
        try:
            self.dvc("checkout", "--quiet", "--force")
        except DarkroomError:
            with suppress(DarkroomError):
                self.dvc("pull", "--quiet", "--force", "--allow-missing")
        if is_tracked:
            self.dvc("checkout", "--quiet", "--force", f"{folder}.dvc")

    def is_stale(self) -> bool:
        """Whether a stage would run because code or settings are newer than the models."""
        return bool(json.loads(self.dvc("status", "--json") or "{}"))

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
        command, env = [*COMMAND, "repro"], for_child(variables)
        process = subprocess.Popen(command, cwd=self.tree, env=env, preexec_fn=die_with_parent)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            where = "params.yaml: retrain.deadline_hours"
            remedy = "the next call continues from the last checkpoint; or allow more hours"
            raise DarkroomError("the deadline has passed", where=where, remedy=remedy) from None
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
            process.kill()
        if code:
            what, remedy = f"darkroom repro ended with exit code {code}", "see its messages above"
            exit_code = code if code > 0 else 128 - code
            raise DarkroomError(what, where=str(self.tree), remedy=remedy, exit_code=exit_code)

    def commit(self, message: str) -> str:
        """Commit the changes in the worktree, if there are any. Returns the commit."""
        self._in_tree("add", "--all")
        if self._in_tree("status", "--porcelain"):
            self._in_tree(*self._identity(), "commit", "--quiet", "-m", message)
        return self._in_tree("rev-parse", "HEAD")

    def publish(self, commit: str, in_place: bool) -> str:
        """Move the branch 'retraining' to ``commit``, or the current branch if ``in_place``.

        Returns a text that names the branch.
        """
        current = self._in_root("symbolic-ref", "--quiet", "--short", "HEAD", check=False)
        if current and (in_place or current == BRANCH):
            self._in_root("merge", "--ff-only", "--quiet", commit, check=False)
            if self._is_ancestor(commit, "HEAD"):
                try:
                    self.dvc("checkout", "--quiet", cwd=self.root)  # keeps unsaved changes
                except DarkroomError:
                    return f"on {current}, but dvc checkout could not update all outputs; see: dvc status"
                return f"on {current}"
        tip = self._branch_tip()
        why = ": the current branch has changes of its own" if in_place else ""
        if tip and self._is_ancestor(commit, tip):
            return f"on the branch {BRANCH}{why}"
        is_ahead = not tip or self._is_ancestor(tip, commit)  # else a user has committed to the branch
        target = commit if is_ahead else self._merge(commit, tip)
        if target and current != BRANCH:
            self._in_root("update-ref", f"refs/heads/{BRANCH}", target, *([tip] if tip else []))
            return f"on the branch {BRANCH}{why}"
        own = f"{BRANCH}-{commit[:8]}"
        self._in_root("update-ref", f"refs/heads/{own}", commit)
        return (
            f"on the branch {own}, because {BRANCH} conflicts with it or is checked out; run: git merge {own}"
        )

    def dvc(self, *arguments: str, cwd: Path | None = None) -> str:
        """The output of a DVC command in the worktree, stripped. Raises ``DarkroomError`` if it fails."""
        name, place = f"dvc {arguments[0]}", cwd or self.tree
        return output(*DVC, *arguments, name=name, cwd=place, timeout_seconds=DVC_SECONDS).strip()

    def _branch_tip(self) -> str:
        name = f"refs/heads/{BRANCH}"
        return self._in_root("rev-parse", "--verify", "--quiet", name, check=False)

    def _is_ancestor(self, one: str, other: str) -> bool:
        return self._in_root("merge-base", one, other, check=False) == one

    def _identity(self) -> tuple[str, ...]:
        return () if self._in_root("config", "user.email", check=False) else IDENTITY

    def _merge(self, one: str, other: str) -> str:
        """The merge of two commits, made in the worktree; '' if they conflict."""
        self._check_out(one)
        options = ("-c", "merge.ff=true", *self._identity())
        try:
            self._in_tree(*options, "merge", "--quiet", "--no-edit", other)
        except DarkroomError:
            self._in_tree("merge", "--abort", check=False)
            return ""
        return self._in_tree("rev-parse", "HEAD")

    def _check_out(self, commit: str) -> None:
        """Check out ``commit`` in the worktree, also after a git command that was killed."""
        if self._in_tree("rev-parse", "--show-toplevel", check=False) == str(self.tree.resolve()):
            for lock in Path(self._in_tree("rev-parse", "--absolute-git-dir")).glob("*.lock"):
                lock.unlink(missing_ok=True)
        else:
            shutil.rmtree(self.tree, ignore_errors=True)
            add_worktree(self.root, self.tree, commit)
        self._in_tree("merge", "--abort", check=False)
        self._in_tree("checkout", "--quiet", "--force", "--detach", commit)
        self._in_tree("clean", "--quiet", "-fd")
