"""Class folders: which layouts are accepted, and the errors for the others."""

import os
import zipfile

import pytest

from pipeline.data.folders import arrange, list_files
from pipeline.errors import BadInput

from .conftest import fill


def names(layout):
    return {
        split: [(name, layout.class_names[label]) for name, label in members]
        for split, members in layout.splits.items()
    }


def test_class_folders_are_classes_in_alphabetical_order(tmp_path):
    layout = arrange(*list_files(fill(tmp_path, {"dog": 1, "cat": 2})), "here")
    assert layout.class_names == ("cat", "dog")
    assert layout.splits == {"train": [("cat/000.png", 0), ("cat/001.png", 0), ("dog/000.png", 1)]}


def test_train_test_and_val_folders_are_splits():
    files = [f"{split}/{label}/1.jpg" for split in ("train", "test", "val") for label in ("cat", "dog")]
    assert names(arrange(files, [], "here")) == {
        split: [(f"{folder}/{label}/1.jpg", label) for label in ("cat", "dog")]
        for split, folder in (("train", "train"), ("test", "test"), ("validation", "val"))
    }


@pytest.mark.parametrize("wrapper", ["pets/", "a/b/", "train/"])
def test_an_enclosing_folder_is_ignored(wrapper):
    layout = arrange(
        [f"{wrapper}cat/1.png", f"{wrapper}dog/1.png"], [f"{wrapper}cat", f"{wrapper}dog"], "here"
    )
    assert layout.class_names == ("cat", "dog") and set(layout.splits) == {"train"}


def test_hidden_files_and_files_that_are_not_images_are_ignored():
    files = [
        "cat/1.png",
        "dog/1.JPEG",
        "cat/.DS_Store",
        "cat/._1.png",
        ".git/1.png",
        "__MACOSX/cat/1.png",
        "readme.txt",
        "cat/notes.csv",
    ]
    layout = arrange(files, [".git", "__MACOSX", "__MACOSX/cat", "cat", "dog"], "here")
    assert [name for name, _ in layout.splits["train"]] == ["cat/1.png", "dog/1.JPEG"]


def test_a_folder_and_its_zip_are_arranged_alike(tmp_path):
    fill(tmp_path / "pets", {"cat": 2, "dog": 2})
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for path in sorted((tmp_path / "pets").rglob("*")):
            archive.write(path, path.relative_to(tmp_path / "pets"))
    assert arrange(*list_files(tmp_path / "pets"), "f") == arrange(*list_files(tmp_path / "pets.zip"), "z")


@pytest.mark.parametrize(
    ("files", "folders", "reason"),
    [
        ([], [], "contains no images"),
        (["cat/notes.txt"], ["cat"], "contains no images"),
        (["1.png", "2.png"], [], "not in a class folder: '1.png', '2.png'"),
        (["cat/1.png", "dog/1.png", "3.png"], [], "not in a class folder: '3.png'"),
        (["cat/1.png"], ["cat"], "only one class: 'cat'"),
        (["pets/cat/1.png"], [], "only one class: 'cat'"),
        (["cat/1.png", "dog/1.png"], ["cat", "dog", "bird"], "class folders without images: 'bird'"),
        (
            ["train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "test/dog/1.png"],
            ["test/bird"],
            "class folders without images: 'test/bird'",
        ),
        (["cat/1.png", "dog/1.gif"], [], "formats that are not supported: 'dog/1.gif'"),
        (["cat/1.png", "Cat/1.png"], [], "differ only in case: 'Cat', 'cat'"),
        (
            ["train/cat/1.png", "train/dog/1.png", "test/cat/1.png"],
            [],
            "split 'test' of the classes: 'dog'",
        ),
        (
            ["train/cat/1.png", "test/cat/1.png", "test/dog/1.png"],
            [],
            "split 'train' of the classes: 'dog'",
        ),
        (["train/cat/1.png", "birds/1.png"], [], "some look like splits"),
        (["test/cat/1.png", "val/cat/1.png"], [], "some look like splits"),
        (["train/a/1.png", "val/a/1.png", "validation/a/1.png"], [], "some look like splits"),
        (["train/1.png", "test/cat/1.png"], [], "not in a class folder: 'train/1.png'"),
        (["cat/\udcff.png", "dog/1.png"], [], "not UTF-8: "),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_with_the_reason(files, folders, reason):
    with pytest.raises(BadInput, match=reason) as caught:
        arrange(files, folders, "my/pictures")
    assert "my/pictures" in str(caught.value) and "->" in str(caught.value)


def test_all_faults_of_a_folder_are_named_at_once():
    files = [
        "cat/1.png",
        "dog/1.gif",
        "dog/2.png",
        "bird/1.tiff",
        "Cat/1.png",
        "cat/\udcff.png",
        "a.png",
        "b.png",
    ]
    files += [f"train/{number}.ppm" for number in range(30)]
    with pytest.raises(BadInput) as caught:
        arrange(files, ["cat", "dog", "empty", "void"], "here")
    text = str(caught.value)
    for part in (
        "'bird/1.tiff', 'dog/1.gif', 'train/0.ppm'",
        "and 12 more",
        "UTF-8: 'cat/",
        "'a.png', 'b.png'",
    ):
        assert part in text
    assert "without images: 'empty', 'void'" in text and "only in case: 'Cat', 'cat'" in text
    assert "convert them to PNG or JPEG; rename the files" in text and len(text.splitlines()) == 2


def test_a_link_that_leads_outside_is_refused(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"")
    fill(tmp_path / "pets", {"cat": 1, "dog": 1})
    os.symlink(tmp_path / "secret.png", tmp_path / "pets" / "cat" / "link.png")
    with pytest.raises(BadInput, match=r"links to folders or to files outside: 'cat/link\.png'"):
        list_files(tmp_path / "pets")


def test_a_link_within_the_folder_is_a_file_and_a_link_to_a_folder_is_refused(tmp_path):
    fill(tmp_path, {"cat": 1, "dog": 1})
    os.symlink("000.png", tmp_path / "cat" / "twin.png")
    assert "cat/twin.png" in list_files(tmp_path)[0]
    os.symlink(tmp_path, tmp_path / "cat" / "loop")
    with pytest.raises(BadInput, match="links to folders or to files outside: 'cat/loop'"):
        list_files(tmp_path)
