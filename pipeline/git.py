"""Git commands and worktrees."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import DarkroomError
from pipeline.process import output

# Without signatures and hooks: a scheduled run cannot enter a passphrase, and hooks may change the worktree.
GIT = ("git", "-c", "commit.gpgsign=false", "-c", "core.hooksPath=/dev/null")


def git(*arguments: str, cwd: Path = Path(), check: bool = True, timeout_seconds: float = 60) -> str:
    """The output of a git command in the folder ``cwd``, stripped.

    Raises ``DarkroomError`` with git's message if it fails; without ``check`` the result is '' instead.
    """
    try:
        command, name = [*GIT, *arguments], f"git {arguments[0]}"
        return output(*command, name=name, cwd=cwd, timeout_seconds=timeout_seconds, LC_ALL="C").strip()
    except DarkroomError:
        if check:
            raise
        return ""


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
