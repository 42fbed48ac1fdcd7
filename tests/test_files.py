"""Atomic writes and digests."""

import copy
import os

import pytest

from pipeline.errors import BadInput
from pipeline.files import (
    atomic_folder,
    atomic_write,
    digest_of,
    digest_of_tree,
    read_json,
    sha256,
    write_json,
    write_text,
)


def test_a_file_appears_whole(tmp_path):
    with atomic_write(tmp_path / "deep" / "a.txt") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "deep" / "a.txt").exists() and temporary.suffix == ".txt"
    assert (tmp_path / "deep" / "a.txt").read_text() == "new" and os.listdir(tmp_path / "deep") == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_the_earlier_file_and_no_temporary_one(tmp_path, error):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(error), atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise error
    assert (tmp_path / "a.txt").read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_the_earlier_folder_and_no_temporary_one(tmp_path, error):
    (tmp_path / "a").mkdir()
    write_text(tmp_path / "a" / "old", "")
    with pytest.raises(error), atomic_folder(tmp_path / "a") as temporary:
        write_text(temporary / "half", "")
        raise error
    assert os.listdir(tmp_path) == ["a"] and os.listdir(tmp_path / "a") == ["old"]


def test_a_file_keeps_its_mode(tmp_path):
    write_text(tmp_path / "a", "old")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644
    (tmp_path / "a").chmod(0o600)
    write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def test_a_folder_replaces_the_earlier_one_whole(tmp_path):
    for name in ("old", "new"):
        with atomic_folder(tmp_path / "a") as temporary:
            write_text(temporary / name, "")
    assert os.listdir(tmp_path) == ["a"] and os.listdir(tmp_path / "a") == ["new"]


def test_json_of_equal_values_has_equal_bytes_and_refuses_nan(tmp_path):
    write_json(tmp_path / "a", {"x": 1, "y": [1.5]})
    write_json(tmp_path / "b", {"y": [1.5], "x": 1})
    assert sha256(tmp_path / "a") == sha256(tmp_path / "b") and read_json(tmp_path / "a") == {
        "x": 1,
        "y": [1.5],
    }
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a", {"x": float("nan")})
    assert read_json(tmp_path / "a") == {"x": 1, "y": [1.5]}


def test_a_digest_depends_on_values_and_not_on_the_order_of_keys():
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1}) != digest_of({"a": 1, "b": 3})


def test_the_digest_of_code_depends_on_names_and_bytes_of_python_files(tmp_path):
    write_text(tmp_path / "code" / "a.py", "1")
    first = digest_of_tree([tmp_path / "code"], tmp_path)
    write_text(tmp_path / "code" / "a.pyc", "2")
    assert digest_of_tree([tmp_path / "code"], tmp_path) == first
    write_text(tmp_path / "code" / "a.py", "3")
    assert digest_of_tree([tmp_path / "code"], tmp_path) != first


def test_an_error_keeps_its_kind_and_parts_between_processes():
    error = copy.copy(BadInput("is bad", where="file", remedy="mend it"))  # made from __reduce__, as by Ray
    assert type(error) is BadInput and (error.what, error.where, error.remedy) == (
        "is bad",
        "file",
        "mend it",
    )
    assert str(error) == "file: is bad\n  -> mend it"
