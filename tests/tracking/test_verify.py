"""A changed byte is named, wherever it is; a missing or outdated file is told from a damaged one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.files import sha256
from pipeline.tracking import mlflow_index
from pipeline.tracking.lineage import md5_of
from pipeline.tracking.trace import trace, verify
from tests.tracking.traced_project import FILES, environment_of, flip, shell, titles


@pytest.mark.parametrize("path", FILES)
def test_one_flipped_byte_is_named(clone, path):
    flip(clone / path)
    failure = trace(environment_of(clone), "make.py").first_failure
    assert (failure.path, failure.state) == (path, "differs") and failure.expected != failure.found
    restore = "git checkout -- " if path.startswith("metrics") else "dvc checkout --force "
    assert f"mv -f {path} " in failure.remedy and f" && {restore}" in failure.remedy
    assert [(problem.path, problem.state) for problem in verify(environment_of(clone))[0]] == [
        (path, "differs")
    ]


def flip_unseen(path):
    """Flip a bit and keep size and time, as a failing disk does."""
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_the_remedies_as_printed_restore_what_dvc_and_git_take_for_unchanged(clone):
    files = ["data/raw/digits.gz", "models/cnn/model.safetensors", "metrics/evaluation.json"]
    shell(clone, "dvc status -q")  # DVC and git remember sizes and times
    shell(clone, "git status -s")
    for path in files:
        flip_unseen(clone / path)
    cached = clone / ".dvc/cache/files/md5" / md5_of(clone / "reports/index.html")[:2]
    (copy,) = cached.iterdir()
    for path in (copy, clone / "reports/index.html"):
        flip_unseen(path)
    copy.chmod(0o444)  # DVC takes a read-only copy for right
    problems = verify(environment_of(clone))[0]
    assert {problem.path for problem in problems} == {
        *files,
        "reports/index.html",
        str(copy.relative_to(clone)),
    }
    for problem in problems[: len(files) + 1]:
        run(clone, problem.remedy)
    assert verify(environment_of(clone))[0] == []


def run(folder, command):
    variables = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", command], cwd=folder, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_objects_that_the_cache_lacks_are_named_and_the_remedy_brings_them_back(clone):
    lost = [md5_of(clone / path) for path in ("models/cnn/model.json", "data/raw/source.json")]
    lost += [md5_of(clone / "plots")]
    paths = {f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]}" for md5 in lost}
    for path in paths:
        (clone / path).unlink()
    problems = verify(environment_of(clone))[0]
    assert {(problem.path, problem.state) for problem in problems} == {(path, "absent") for path in paths}
    for remedy in {problem.remedy for problem in problems}:
        run(clone, remedy)
    assert verify(environment_of(clone))[0] == []


@pytest.mark.parametrize(
    "name", ["pyfunc_model.py", "MLmodel", "model.json", "gates.py", "sha256.json", "new"]
)
def test_a_change_of_any_file_of_a_registered_version_is_named(origin, name):
    (home,) = (path.parent for path in (origin / "mlartifacts").rglob("MLmodel"))
    file = home / "new.py" if name == "new" else next(home.rglob(name))
    data = file.read_bytes() if file.is_file() else None
    file.write_bytes((data or b"") + b"\n")
    try:
        for failure in (
            trace(environment_of(origin), "cnn/1").first_failure,
            *verify(environment_of(origin))[0],
        ):
            assert (failure.path, failure.state) == (str(file), "differs")
    finally:
        file.write_bytes(data) if data else file.unlink()
    assert trace(environment_of(origin), "cnn/1").first_failure is None


def test_what_mlflow_adds_to_a_version_that_it_serves_is_no_change(origin, monkeypatch):
    """What Python compiled is removed, since it would run whatever the code says. Else it is named."""
    (home,) = (path.parent for path in (origin / "mlartifacts").rglob("MLmodel"))
    (home / "code/pipeline/__pycache__").mkdir(exist_ok=True)
    added = [home / "registered_model_meta", home / "code/pipeline/__pycache__/files.cpython-311.pyc"]
    for file in added:
        file.write_text("model_name: cnn")
    with monkeypatch.context() as patch:
        patch.setattr(mlflow_index, "remove", lambda path: None)  # as if the folder were read-only
        assert trace(environment_of(origin), "cnn/1").first_failure.path == str(added[1])
    assert trace(environment_of(origin), "cnn/1").first_failure is None and not added[1].exists()
    added[0].unlink()


def test_a_link_to_a_folder_in_a_registered_version_is_named(origin):
    (home,) = (path.parent for path in (origin / "mlartifacts").rglob("MLmodel"))
    (home / "code/numpy").symlink_to(origin / "given")
    try:
        assert trace(environment_of(origin), "cnn/1").first_failure.path == str(home / "code/numpy")
    finally:
        (home / "code/numpy").unlink()


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
