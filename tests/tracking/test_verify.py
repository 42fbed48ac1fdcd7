"""A changed byte is named, wherever it is; a missing or outdated file is told from a damaged one."""

import json
import shutil

import pytest

from pipeline.files import sha256
from pipeline.tracking.trace import trace, verify
from tests.tracking.traced_project import FILES, environment_of, flip, titles


@pytest.mark.parametrize("path", FILES)
def test_one_flipped_byte_is_named(clone, path):
    flip(clone / path)
    failure = trace(environment_of(clone), "make.py").first_failure
    assert (failure.path, failure.state) == (path, "differs") and failure.expected != failure.found
    assert (
        failure.remedy == f"git checkout -- {path}"
        if path.startswith("metrics")
        else failure.remedy.startswith("dvc checkout --force ")
    )
    assert [(problem.path, problem.state) for problem in verify(environment_of(clone))[0]] == [
        (path, "differs")
    ]


def test_a_flipped_byte_in_the_cache_is_named_and_each_object_is_checked(clone):
    objects = sorted((clone / ".dvc/cache/files/md5").glob("*/*"))
    for file in (objects[0], next(path for path in objects if path.suffix == ".dir")):
        flip(file)
        problems, counts = verify(environment_of(clone))
        assert [(problem.path, problem.state) for problem in problems] == [
            (str(file.relative_to(clone)), "differs")
        ]
        assert counts["cache objects"] == len(objects)
        flip(file)


def test_a_damaged_list_of_dvcs_running_commands_is_named(clone):
    (clone / ".dvc/tmp").mkdir(exist_ok=True)
    (clone / ".dvc/tmp/rwlock").touch()
    assert [(problem.path, problem.state) for problem in verify(environment_of(clone))[0]] == [
        (".dvc/tmp/rwlock", "differs")
    ]


def test_a_cache_that_dvcs_global_configuration_names_is_checked(clone, tmp_path, monkeypatch):
    cache = shutil.move(clone / ".dvc/cache", tmp_path / "elsewhere")
    (tmp_path / "config").write_text(f"[cache]\n    dir = {cache}\n")
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path))
    objects = sorted((cache / "files/md5").glob("*/*"))
    flip(objects[0])
    problems, counts = verify(environment_of(clone))
    assert counts["cache objects"] == len(objects)
    assert [(problem.path.endswith(objects[0].name), problem.state) for problem in problems] == [
        (True, "differs")
    ]


def test_a_flipped_byte_in_a_registered_version_is_named(origin):
    (weights,) = (origin / "mlartifacts").rglob("model.safetensors")
    flip(weights)
    try:
        failure = trace(environment_of(origin), "cnn/1").first_failure
        assert (failure.path, failure.state, failure.found) == (str(weights), "differs", sha256(weights))
        assert [problem.path for problem in verify(environment_of(origin))[0]] == [str(weights)]
    finally:
        flip(weights)


def test_a_missing_file_is_checked_in_the_cache_or_has_to_be_pulled(clone):
    shutil.rmtree(clone / "data/processed/images")
    assert trace(environment_of(clone), "models/cnn").first_failure is None
    assert [(problem.path, problem.state) for problem in verify(environment_of(clone))[0]] == [
        ("data/processed/images", "absent")
    ]
    shutil.rmtree(clone / ".dvc/cache")
    failure = trace(environment_of(clone), "models/cnn").first_failure
    assert (failure.path, failure.state, failure.remedy) == (
        "data/processed/images",
        "absent",
        "dvc pull --force data/processed/images",
    )


def test_edited_code_and_params_are_stale_and_not_damaged(clone):
    with open(clone / "make.py", "a") as file:
        file.write("# a comment\n")
    (clone / "params.yaml").write_text(json.dumps({"data": {"source": "toy"}, "cnn": {"steps": 4}}))
    problems = verify(environment_of(clone))[0]
    assert {problem.path for problem in problems} == {"make.py", "params.yaml: cnn", "params.yaml: cnn.steps"}
    assert {problem.state for problem in problems} == {"stale"}
    found = trace(environment_of(clone), "models/cnn")
    assert found.first_failure is None and "changed since: make.py" in titles(found.up)


def test_a_damaged_file_is_named_even_if_another_is_missing(clone):
    (clone / "models/cnn/model.json").unlink()
    flip(clone / "models/cnn/model.safetensors")
    assert trace(environment_of(clone), "models/cnn").first_failure.path == "models/cnn/model.safetensors"
    assert {problem.state for problem in verify(environment_of(clone))[0]} == {"absent", "differs"}
