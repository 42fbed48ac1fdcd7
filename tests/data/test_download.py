"""The stage ``download``: the content of data/raw after a success and after a failure."""

import gzip
import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.data import sources
from pipeline.data.download import download
from pipeline.data.settings import DataSettings
from pipeline.data.transfer import RetryPolicy
from pipeline.errors import BadInput, DarkroomError
from pipeline.files import read_json, sha256

from .conftest import body, fill

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
QUICK = RetryPolicy(num_attempts=1, timeout_seconds=0.5, pause_seconds=0)


def folder_settings(folder: object) -> DataSettings:
    return DataSettings(source="folder", folder=str(folder), image_size=8)


def test_digits_need_no_network(environment, tmp_path):
    record = download(DataSettings(), environment, tmp_path / "raw")
    assert record == read_json(tmp_path / "raw" / "source.json")
    assert sha256(tmp_path / "raw" / "digits.csv.gz") == record["files"]["digits.csv.gz"]["sha256"]
    assert not list((environment.storage / "downloads").iterdir())


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("fashion_mnist", "fashion-mnist"), ("MNIST", "mnist"), ("imagenet-22k", "choose one of: digits")],
)
def test_an_unknown_source_is_refused_with_the_most_similar_name(environment, tmp_path, name, remedy):
    with pytest.raises(BadInput, match=remedy):
        download(DataSettings(source=name), environment, tmp_path / "raw")


def test_every_source_of_the_catalogue_is_fetched_over_https_and_verified():
    for source in sources.CATALOGUE.values():
        assert all(address.startswith(("https://", "package:")) for address in source.addresses)
        assert all(len(bytes.fromhex(file.sha256)) == 32 and file.num_bytes > 0 for file in source.files)
        assert source.description and source.licence and (source.files or source.name == "folder")


@pytest.fixture
def tiny(monkeypatch, server):
    """A source of two files, of which the server has one."""
    contents = {"one.gz": gzip.compress(b"1"), "two.gz": gzip.compress(b"2")}
    files = tuple(
        sources.RemoteFile(name, len(data), hashlib.sha256(data).hexdigest())
        for name, data in contents.items()
    )
    monkeypatch.setitem(
        sources.CATALOGUE,
        "tiny",
        replace(sources.find("mnist"), name="tiny", addresses=(server.url,), files=files),
    )
    server.answers["/one.gz"] = body(contents["one.gz"])
    return contents


def test_a_failed_download_keeps_the_earlier_data_and_the_files_that_were_complete(
    environment, tmp_path, tiny, server
):
    raw = tmp_path / "raw"
    download(DataSettings(), environment, raw)
    with pytest.raises(DarkroomError, match=r"two\.gz"):
        download(DataSettings(source="tiny"), environment, raw, QUICK)
    assert read_json(raw / "source.json")["source"] == "digits" and sorted(os.listdir(raw)) == [
        "digits.csv.gz",
        "source.json",
    ]
    server.requests.clear()
    server.answers["/two.gz"] = body(tiny["two.gz"])
    download(DataSettings(source="tiny"), environment, raw, QUICK)
    assert [path for path, _ in server.requests] == ["/two.gz"]
    assert sorted(os.listdir(raw)) == ["one.gz", "source.json", "two.gz"]


@pytest.mark.parametrize("form", ["folder", "relative", "url"])
def test_a_mirror_is_tried_first_and_is_not_in_the_record(environment, tmp_path, tiny, server, form):
    (tmp_path / "mirror" / "tiny").mkdir(parents=True)
    for name, data in tiny.items():
        (tmp_path / "mirror" / "tiny" / name).write_bytes(data)
        server.answers[f"/mirror/tiny/{name}"] = body(data)
    mirror = {"folder": str(tmp_path / "mirror"), "relative": "mirror/", "url": f"{server.url}/mirror"}[form]
    record = download(
        DataSettings(source="tiny"), replace(environment, mirror=mirror), tmp_path / "raw", QUICK
    )
    assert all("/mirror/" in path for path, _ in server.requests)
    assert record["files"]["one.gz"]["url"] == f"{server.url}/one.gz"


def test_a_folder_of_pictures_is_copied_and_the_users_files_stay_as_they_are(environment, tmp_path):
    origin = fill(tmp_path / "pets", {"cat": 5, "dog": 5})
    (origin / "notes.txt").write_text("mine")
    before = {
        path: (path.stat().st_ino, path.stat().st_mode, path.stat().st_nlink) for path in origin.rglob("*")
    }
    download(folder_settings("pets"), environment, tmp_path / "raw")
    copies = [path for path in (tmp_path / "raw" / "pictures").rglob("*") if path.is_file()]
    assert len(copies) == 10 and {path.stat().st_ino for path in copies}.isdisjoint(
        inode for inode, *_ in before.values()
    )
    assert before == {
        path: (path.stat().st_ino, path.stat().st_mode, path.stat().st_nlink) for path in origin.rglob("*")
    }


@pytest.mark.parametrize(
    ("folder", "reason"), [("", "params.yaml: data.folder"), ("nowhere", "no such folder or archive")]
)
def test_a_folder_that_is_not_named_or_not_there_is_refused(environment, tmp_path, folder, reason):
    with pytest.raises(BadInput, match=reason):
        download(folder_settings(folder), environment, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_a_folder_that_cannot_be_used_leaves_nothing(environment, tmp_path):
    fill(tmp_path / "pets", {"cat": 5, "Cat": 5})
    with pytest.raises(BadInput, match="differ only in case"):
        download(folder_settings("pets"), environment, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


@pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="the mirror ../shared/data is not here")
def test_the_published_mnist_comes_from_the_mirror_with_its_published_hashes(environment, tmp_path):
    record = download(
        DataSettings(source="mnist"), replace(environment, mirror=str(SHARED)), tmp_path / "raw", QUICK
    )
    md5 = hashlib.md5((tmp_path / "raw" / "train-images-idx3-ubyte.gz").read_bytes()).hexdigest()
    assert md5 == "f68b3c2dcbeaaa9fbdd348bbdeb94873" and len(record["files"]) == 4
