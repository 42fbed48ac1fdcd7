"""Class folders: which layouts are accepted, and the errors for the others."""

import os
import zipfile

import pytest

from pipeline.data.folders import list_files
from pipeline.data.reading import Layout, arrange
from pipeline.errors import BadInput

from .conftest import fill


def arranged(files: list[str], folders: list[str], where: str = "here") -> Layout:
    layout = arrange(files, folders)
    layout.refuse(where)
    return layout


def listed(root) -> tuple[list[str], list[str]]:
    listing = list_files(root)
    listing.refuse(str(root))
    return listing.files, listing.folders


def names(layout: Layout) -> dict[str, list[tuple[str, str]]]:
    return {split: [(one.path, one.label) for one in some] for split, some in layout.splits().items()}


def test_class_folders_are_classes_in_alphabetical_order(tmp_path):
    layout = arranged(*listed(fill(tmp_path, {"dog": 1, "cat": 2})))
    assert layout.class_names == ("cat", "dog") and not layout.warnings and not layout.skipped
    assert names(layout) == {
        "train": [("cat/000.png", "cat"), ("cat/001.png", "cat"), ("dog/000.png", "dog")]
    }


def test_train_test_and_val_folders_are_splits():
    files = [f"{split}/{label}/1.jpg" for split in ("train", "test", "val") for label in ("cat", "dog")]
    assert names(arranged(files, [])) == {
        split: [(f"{folder}/{label}/1.jpg", label) for label in ("cat", "dog")]
        for split, folder in (("train", "train"), ("test", "test"), ("validation", "val"))
    }


@pytest.mark.parametrize("wrapper", ["pets/", "a/b/", "train/"])
def test_an_enclosing_folder_is_ignored(wrapper):
    layout = arranged([f"{wrapper}cat/1.png", f"{wrapper}dog/1.png"], [f"{wrapper}cat", f"{wrapper}dog"])
    assert layout.class_names == ("cat", "dog") and {one.split for one in layout.entries} == {None}


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
    layout = arranged(files, [".git", "__MACOSX", "__MACOSX/cat", "cat", "dog"])
    assert [one.path for one in layout.entries] == ["cat/1.png", "dog/1.JPEG"]
    assert {reason: len(some) for reason, some in layout.skipped.items()} == {
        "hidden, or made by the operating system": 4,
        "not pictures: .txt": 1,
        "not pictures: .csv": 1,
    }


def test_a_folder_and_its_zip_are_arranged_alike(tmp_path):
    fill(tmp_path / "pets", {"cat": 2, "dog": 2})
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for path in sorted((tmp_path / "pets").rglob("*")):
            archive.write(path, path.relative_to(tmp_path / "pets"))
    assert arranged(*listed(tmp_path / "pets")) == arranged(*listed(tmp_path / "pets.zip"))


@pytest.mark.parametrize(
    ("files", "folders", "reason"),
    [
        ([], [], "contains no images"),
        (["cat/notes.txt"], ["cat"], "contains no images"),
        (["cat/1.png", "dog/1.png", "3.png"], [], "not in a class folder: '3.png'"),
        (["cat/1.png", "dog/1.png"], ["cat", "dog", "bird"], "class folders without images: 'bird'"),
        (
            ["train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "test/dog/1.png"],
            ["test/bird"],
            "class folders without images: 'test/bird'",
        ),
        (["cat/1.png", "dog/1.heic"], [], "formats that are not supported: 'dog/1.heic'"),
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
        (
            ["train/a/1.png", "val/a/1.png", "validation/a/1.png"],
            [],
            "several folders for one split: 'val', 'validation'",
        ),
        (["train/1.png", "test/cat/1.png"], [], "not in a class folder: 'train/1.png'"),
        (["cat/\udcff.png", "dog/1.png"], [], "not UTF-8: "),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_with_the_reason(files, folders, reason):
    with pytest.raises(BadInput, match=reason) as caught:
        arranged(files, folders, "my/pictures")
    assert "my/pictures" in str(caught.value) and "->" in str(caught.value)


def test_all_faults_of_a_folder_are_named_at_once():
    files = [
        "cat/1.png",
        "dog/1.heic",
        "dog/2.png",
        "bird/1.svg",
        "Cat/1.png",
        "cat/\udcff.png",
        "a.png",
        "b.png",
    ]
    files += [f"train/{number}.psd" for number in range(30)]
    with pytest.raises(BadInput) as caught:
        arranged(files, ["cat", "dog", "empty", "void"])
    text = str(caught.value)
    for part in (
        "'bird/1.svg', 'dog/1.heic', 'train/0.psd'",
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
        listed(tmp_path / "pets")


def test_a_link_within_the_folder_is_a_file_and_a_link_to_a_folder_is_refused(tmp_path):
    fill(tmp_path, {"cat": 1, "dog": 1})
    os.symlink("000.png", tmp_path / "cat" / "twin.png")
    assert "cat/twin.png" in listed(tmp_path)[0]
    os.symlink(tmp_path, tmp_path / "cat" / "loop")
    with pytest.raises(BadInput, match="links to folders or to files outside: 'cat/loop'"):
        listed(tmp_path)


def test_a_link_to_itself_is_refused_by_name(tmp_path):
    fill(tmp_path, {"cat": 1, "dog": 1})
    os.symlink("self.png", tmp_path / "cat" / "self.png")
    with pytest.raises(BadInput, match=r"links to files that are missing: 'cat/self\.png'"):
        listed(tmp_path)
