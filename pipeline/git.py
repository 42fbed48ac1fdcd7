"""Git commands and worktrees."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.environment import for_child
from pipeline.errors import DarkroomError
from pipeline.process import die_with_parent

# Without signatures and hooks: a scheduled run cannot enter a passphrase, and hooks may change the worktree.
GIT = ("git", "-c", "commit.gpgsign=false", "-c", "core.hooksPath=/dev/null")


def git(*arguments: str, cwd: Path = Path(), check: bool = True, timeout_seconds: float = 60) -> str:
    """The output of a git command in the folder ``cwd``, stripped.

    Raises ``DarkroomError`` with git's message if it fails; without ``check`` the result is '' instead.
    """
    try:
        done = subprocess.run(
            [*GIT, *arguments],
            cwd=cwd,
            env=for_child({"LC_ALL": "C"}),  # messages in English
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_seconds,
            preexec_fn=die_with_parent,
        )
        code, output, messages = done.returncode, done.stdout, done.stderr
    except (OSError, subprocess.SubprocessError) as error:
        code, output, messages = 1, "", str(error)
    if code and check:
        lines = messages.strip().splitlines() or ["no message"]
        reason = next((line for line in lines if line.startswith(("fatal:", "error:"))), lines[-1])
        what, remedy = f"git {arguments[0]} failed: {reason[:300]}", "correct this and repeat the command"
        raise DarkroomError(what, where=str(cwd.resolve()), remedy=remedy)
    return "" if code else output.strip()


def add_worktree(root: Path, tree: Path, commit: str) -> None:
    """Check out ``commit`` of the repository ``root`` in the new folder ``tree``, on no branch."""
    git("worktree", "prune", cwd=root)
    # Twice --force: also if a deleted worktree at this path was locked.
    git("worktree", "add", "--force", "--force", "--quiet", "--detach", str(tree), commit, cwd=root)


@contextmanager
def worktree(root: Path, commit: str) -> Iterator[Path]:
    """A clean checkout of ``commit`` in a temporary folder, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="darkroom-") as parent:
        tree = Path(parent, "tree")
        try:
            add_worktree(root, tree, commit)
            yield tree
        finally:
            git("worktree", "remove", "--force", str(tree), cwd=root, check=False)
