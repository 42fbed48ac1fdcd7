"""The worktree keeps accepted pictures, recovers from a kill and does not change the user's work."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.environment import Environment
from pipeline.errors import BadInput, DarkroomError
from pipeline.retraining.workspace import BRANCH, Workspace
from tests.repository import commit

PICTURES = "data/own/pictures"


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


@pytest.fixture
def project(tmp_path) -> Path:
    """A project under git and DVC with one file and no stage."""
    folder = tmp_path / "project"
    (folder / "data/own").mkdir(parents=True)
    (folder / ".gitignore").write_text("/.darkroom/\n/data/own/?*\n!/data/own/*.dvc\n")
    (folder / "note").write_text("one\n")
    git(folder, "init", "-q", "-b", "main")
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=folder, timeout=60, check=True)
    commit(folder, "first")
    return folder


@pytest.fixture
def workspace(project) -> Workspace:
    return Workspace(Environment(root=project, storage=project / ".darkroom"))


def deliver(workspace: Workspace, name: str, in_place: bool = False) -> str:
    """Accept one more picture and publish it. Returns the branch."""
    workspace.prepare(workspace.base(), PICTURES)
    path = workspace.tree / PICTURES / "a" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(name)
    workspace.dvc("add", PICTURES)
    return workspace.publish(workspace.commit(f"retrain: {name}"), in_place)


def accepted(workspace: Workspace) -> set[str]:
    workspace.prepare(workspace.base(), PICTURES)
    return {path.name for path in (workspace.tree / PICTURES).rglob("*") if path.is_file()}


def test_the_branch_keeps_accepted_pictures_while_the_project_gets_commits(project, workspace):
    assert deliver(workspace, "1.png") == f"on the branch {BRANCH}"
    (project / "note").write_text("two\n")
    commit(project, "the user's")
    assert deliver(workspace, "2.png") == f"on the branch {BRANCH}"
    assert accepted(workspace) == {"1.png", "2.png"} and (workspace.tree / "note").read_text() == "two\n"
    assert workspace.base() == workspace.base() == git(project, "rev-parse", BRANCH)
    assert git(project, "status", "--porcelain") == "" and not (project / f"{PICTURES}.dvc").exists()
    git(project, "merge", "-q", BRANCH)
    assert workspace.base() == git(project, "rev-parse", "main") and accepted(workspace) == {"1.png", "2.png"}


def test_the_user_has_to_merge_conflicting_branches(project, workspace):
    deliver(workspace, "1.png")
    (project / f"{PICTURES}.dvc").write_text("outs: []\n")
    commit(project, "another one")
    before = git(project, "rev-parse", BRANCH)
    with pytest.raises(BadInput, match=f"git merge {BRANCH}"):
        workspace.base()
    assert git(project, "rev-parse", BRANCH) == before


def test_in_place_the_project_has_the_pictures_and_keeps_unsaved_work(project, workspace):
    (project / "note").write_text("unsaved\n")
    assert deliver(workspace, "1.png", in_place=True) == "on main"
    assert (project / PICTURES / "a/1.png").read_text() == "1.png" and (
        project / "note"
    ).read_text() == "unsaved\n"
    (project / f"{PICTURES}.dvc").write_text("unsaved too\n")
    assert deliver(workspace, "2.png", in_place=True).startswith(
        f"on the branch {BRANCH}: the current branch has changes"
    )
    assert (project / f"{PICTURES}.dvc").read_text() == "unsaved too\n" and accepted(workspace) == {
        "1.png",
        "2.png",
    }


@pytest.mark.nightly
def test_a_branch_that_is_checked_out_goes_forward_with_its_files(project, workspace):
    deliver(workspace, "1.png")
    git(project, "switch", "-q", BRANCH)
    assert deliver(workspace, "2.png") == f"on {BRANCH}"
    assert git(project, "status", "--porcelain") == "" and (project / PICTURES / "a/2.png").is_file()


@pytest.mark.nightly
def test_a_commit_to_the_branch_during_a_retraining_is_kept(project, workspace):
    deliver(workspace, "1.png")
    workspace.prepare(workspace.base(), PICTURES)
    (workspace.tree / PICTURES / "a/2.png").write_text("2.png")
    workspace.dvc("add", PICTURES)
    ours = workspace.commit("retrain: 2.png")
    git(project, "switch", "-q", BRANCH)
    (project / "note").write_text("by hand\n")
    commit(project, "by hand")
    theirs = git(project, "rev-parse", "HEAD")
    (project / f"{PICTURES}.dvc").write_text("unsaved\n")
    assert (
        workspace.publish(ours, False).startswith(f"on the branch {BRANCH}-{ours[:8]}")
        and git(project, "rev-parse", BRANCH) == theirs
    )
    git(project, "switch", "-q", "-f", "main")
    assert workspace.publish(ours, False) == workspace.publish(ours, False) == f"on the branch {BRANCH}"
    assert {theirs, ours} <= set(git(project, "rev-list", BRANCH).split()) and accepted(workspace) == {
        "1.png",
        "2.png",
    }


def test_a_dry_run_moves_no_branch(project, workspace):
    deliver(workspace, "1.png")
    (project / "note").write_text("two\n")
    commit(project, "the user's")
    before = git(project, "rev-parse", BRANCH)
    workspace.prepare(workspace.base(keep=False), PICTURES)
    assert git(project, "rev-parse", BRANCH) == before and (workspace.tree / "note").read_text() == "two\n"


def test_a_relative_remote_works_from_the_worktree(project, workspace):
    subprocess.run(
        [sys.executable, "-m", "dvc", "remote", "add", "-q", "-d", "store", "../store"],
        cwd=project,
        timeout=60,
        check=True,
    )
    commit(project, "a remote")
    workspace.prepare(workspace.base(), PICTURES)
    (workspace.tree / PICTURES).mkdir(parents=True)
    (workspace.tree / PICTURES / "1.png").write_text("1")
    workspace.dvc("add", PICTURES)
    workspace.dvc("push")
    assert len(list((project.parent / "store").rglob("*"))) > 1


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["index.lock", "HEAD.lock", "locked"])
def test_a_killed_git_command_does_not_stop_the_next_retraining(project, workspace, name):
    deliver(workspace, "1.png")
    (project / ".git/worktrees/tree" / name).touch()
    (workspace.tree / "half").write_text("half")
    assert accepted(workspace) == {"1.png"} and not (workspace.tree / "half").exists()


@pytest.mark.nightly
def test_a_worktree_that_is_gone_is_made_again(project, workspace):
    deliver(workspace, "1.png")
    shutil.rmtree(workspace.tree)
    assert not workspace.holds(git(project, "rev-parse", "main")) and accepted(workspace) == {"1.png"}
    shutil.rmtree(project / ".git/worktrees")
    assert accepted(workspace) == {"1.png"}


def test_uncommitted_settings_of_dvc_are_in_no_commit(project, workspace):
    with open(project / ".dvc/config", "a") as file:
        file.write("['remote \"store\"']\n    url = https://user:SECRET@example.org\n")
    deliver(workspace, "1.png")
    assert "SECRET" not in git(project, "show", "--stat", "-p", BRANCH)


def test_pictures_that_dvc_does_not_track_are_refused(project, workspace):
    (project / PICTURES).mkdir()
    with pytest.raises(BadInput, match=f"dvc add {PICTURES}"):
        workspace.prepare(workspace.base(), PICTURES)
    workspace.prepare(workspace.base(), "")


def test_a_failed_command_is_named_with_its_folder(workspace):
    workspace.prepare(workspace.base(), PICTURES)
    with pytest.raises(DarkroomError, match="dvc add failed"):
        workspace.dvc("add", "data/own/nothing")
