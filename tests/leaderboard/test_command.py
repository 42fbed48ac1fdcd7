"""`darkroom leaderboard` before anything is trained: what it refuses, and that a dry run changes nothing."""

import json

import pytest
import yaml

from pipeline.leaderboard import trainings
from tests.command import darkroom
from tests.leaderboard.test_board import GOOD
from tests.project import PARAMS

DVC = """\
stages:
  preprocess:
    cmd: touch ran
    deps: [raw]
    outs:
    - data/processed/images
"""


@pytest.fixture
def project(tmp_path, monkeypatch, processed_digits):
    """A project with params.yaml, processed digits and two leaderboards of the same name."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "dvc.yaml").write_text(DVC)
    (tmp_path / "params.yaml").write_text(json.dumps(PARAMS))
    (tmp_path / "data/processed").mkdir(parents=True)
    (tmp_path / "data/processed/images").symlink_to(processed_digits)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.yaml").write_text(yaml.safe_dump(GOOD, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def paths(folder):
    return sorted(str(path) for path in folder.rglob("*") if ".dvc" not in path.parts)


def test_a_dry_run_changes_nothing_and_says_that_the_data_are_stale(project, monkeypatch):
    asked = []
    monkeypatch.setattr(trainings, "repro", lambda *arguments: pytest.fail("a stage was run"))
    monkeypatch.setattr(
        trainings, "output", lambda *command, **_: asked.append(command) or '{"preprocess": []}'
    )
    before = paths(project)
    code, output, _ = darkroom("leaderboard", "a/x.yaml", "--dry-run")
    assert code == 0 and paths(project) == before and "status" in asked[0]
    assert "images is not up to date: dvc repro preprocess comes first" in output
    assert output.count("x: ") == 4 and "x: beta 2, seed 3" in output


def test_files_of_one_name_and_a_folder_that_cannot_be_written_are_refused_at_once(project, monkeypatch):
    monkeypatch.setattr(trainings, "repro", lambda *arguments: pytest.fail("a stage was run"))
    code, _, error = darkroom("leaderboard", "a/x.yaml", "b/x.yaml")
    assert code == 2 and "x: several files of this name" in error
    code, _, error = darkroom("leaderboard", "a/x.yaml", "--out", "params.yaml/tables")
    assert code == 2 and "nothing can be written there" in error
