"""Git commands: their errors, and worktrees that leave nothing behind."""

import pytest

from pipeline.errors import DarkroomError
from pipeline.git import git, worktree

IDENTITY = ("-c", "user.name=t", "-c", "user.email=t@example.org")


@pytest.fixture
def repository(tmp_path):
    """A repository with one commit and a hook that fails."""
    root = tmp_path / "root"
    root.mkdir()
    git("init", "-q", "-b", "main", cwd=root)
    (root / "ü.txt").write_text("one")
    hook = root / ".git/hooks/post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    git("add", "-A", cwd=root)
    git(*IDENTITY, "commit", "-q", "-m", "one", cwd=root)
    return root


def test_a_command_that_fails_is_an_error_with_gits_message_or_empty(repository):
    with pytest.raises(DarkroomError, match="git rev-parse failed: fatal: ") as caught:
        git("rev-parse", "--verify", "nothing", cwd=repository)
    assert caught.value.where == str(repository)
    assert git("rev-parse", "--verify", "nothing", cwd=repository, check=False) == ""
    assert git("status", cwd=repository / "absent", check=False) == ""
    with pytest.raises(DarkroomError, match="timed out"):
        git("status", cwd=repository, timeout_seconds=0)


def test_a_worktree_is_clean_runs_no_hooks_and_is_removed_also_after_an_error(repository):
    commit = git("rev-parse", "HEAD", cwd=repository)
    (repository / "ü.txt").write_text("two")
    with pytest.raises(ZeroDivisionError), worktree(repository, commit) as tree:
        assert (tree / "ü.txt").read_text() == "one"
        (tree / "new").touch()
        raise ZeroDivisionError
    assert not tree.parent.exists() and not (repository / ".git/worktrees").exists()
    with pytest.raises(DarkroomError, match="git worktree failed"), worktree(repository, "0" * 40):
        pass
