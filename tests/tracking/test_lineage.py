"""Lineage: git tags, DVC's md5s and processes; credentials are removed."""

import subprocess
from pathlib import Path

import pytest

from pipeline.tracking import lineage


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://me:token@github.com/a/b.git", "https://github.com/a/b.git"),
        ("https://token@host", "https://host"),
        ("postgresql+psycopg2://u:p@ss@db:5432/mlflow failed", "postgresql+psycopg2://db:5432/mlflow failed"),
        ("https://h/p?x=1&access_token=abc&y=2", "https://h/p?x=1&access_token=***&y=2"),
        ("git@github.com:a/b.git", "git@github.com:a/b.git"),
        ("sqlite:////tmp/a@b/mlflow.db", "sqlite:////tmp/a@b/mlflow.db"),
    ],
)
def test_credentials_in_addresses_are_removed(text, clean):
    assert lineage.redact(text) == clean


def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(
        ["git", *identity, *arguments], cwd=root, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_git_tags_name_the_commit_and_whether_files_differ_from_it(tmp_path):
    git(tmp_path, "init", "-b", "main")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "a")
    git(tmp_path, "remote", "add", "origin", "https://me:secret@example.org/a.git")
    expected = {
        "mlflow.source.git.commit": git(tmp_path, "rev-parse", "HEAD"),
        "darkroom.git.dirty": "false",
        "mlflow.source.git.branch": "main",
        "mlflow.source.git.repoURL": "https://example.org/a.git",
    }
    assert lineage.git_tags(tmp_path) == expected
    (tmp_path / "a").write_text("2")
    assert lineage.git_tags(tmp_path)["darkroom.git.dirty"] == "true"


def test_without_git_the_commit_is_unknown(tmp_path):
    assert lineage.git_tags(tmp_path) == {
        "mlflow.source.git.commit": "unknown",
        "darkroom.git.dirty": "unknown",
    }


def test_the_md5s_are_those_of_dvc(tmp_path):
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n"
        "  make:\n    cmd: mkdir -p data/sub && echo 1 > data/a && echo 2 > data/sub/é\n    outs: [data]\n"
        "  train:\n    cmd: cp -r data model && echo 3 > m.json\n    deps: [data, train.py]\n"
        "    outs: [model]\n    metrics:\n    - m.json:\n        cache: false\n"
    )
    (tmp_path / "train.py").write_text("pass\n")
    git(tmp_path, "init", "-b", "main")
    for arguments in (["init", "-q"], ["repro", "-q"]):
        subprocess.run(
            [str(Path(__import__("sys").executable).with_name("dvc")), *arguments], cwd=tmp_path, check=True
        )
    entries = lineage.stages_of(tmp_path / "dvc.lock")["train"]
    expected = {entry["path"]: entry["md5"] for entry in [*entries["deps"], *entries["outs"]]}
    assert lineage.dvc_md5s(tmp_path, "train") == expected
    assert set(expected) == {"data", "train.py", "model", "m.json"}
    assert lineage.dvc_md5s(tmp_path, "unknown") == {}


def test_a_process_is_identified_by_its_start():
    process = lineage.Process.current()
    assert not process.is_dead()
    assert lineage.Process(process.host, process.pid, process.started - 100).is_dead()
    assert not lineage.Process("another-host", 1, 0).is_dead()
