"""Malicious and damaged archives are refused with a reason."""

import tracemalloc

import numpy as np
import pytest

from pipeline.data.folders import list_files, read_file
from pipeline.data.formats import read_cifar, read_tar
from pipeline.errors import BadInput
from tests.bad_input.archives import TARS, tar, zip_with


def test_wanted_members_are_read_and_others_skipped(tmp_path):
    path = tar(tmp_path / "a.tar.gz", ("a", b"1"), ("readme", b"x" * 1000), ("b", b"22"))
    assert read_tar(path, ["a", "b"], 100_000) == {"a": b"1", "b": b"22"}


LARGE = {
    "no member": ([("b", b"1")], "no member 'a'"),
    "nothing": ([], "no member 'a'|damaged"),
    "a large member": ([("a", bytes(3_000_000))], "more than the 1,000,000 bytes"),
    "a large member that is not wanted": (
        [("bomb", bytes(3_000_000)), ("a", b"1")],
        "more than the 1,000,000",
    ),
    "a long name": ([("n" * 2_000_000, b""), ("a", b"1")], "more than the 1,000,000 bytes"),
}


@pytest.mark.parametrize(("members", "reason"), (TARS | LARGE).values(), ids=TARS | LARGE)
def test_a_malicious_tar_is_refused(tmp_path, members, reason):
    path = tar(tmp_path / "harm.tar.gz", *members)
    with pytest.raises(BadInput, match=reason) as caught:
        read_tar(path, ["a"], 1_000_000)
    assert "harm.tar.gz" in str(caught.value)


@pytest.mark.parametrize("keep", [0, 5, 60, -8, -1])
def test_a_truncated_tar_is_refused(tmp_path, keep):
    path = tar(tmp_path / "a.tar.gz", ("a", np.random.default_rng(0).bytes(5000)))
    path.write_bytes(path.read_bytes()[:keep])
    try:
        assert len(read_tar(path, ["a"], 1_000_000)["a"]) == 5000 and keep < 0
    except BadInput as error:
        assert "damaged" in str(error) or "no member" in str(error)


def test_a_zip_bomb_is_refused_even_if_its_header_gives_a_small_size(tmp_path, monkeypatch):
    path = zip_with(tmp_path / "bomb.zip", ("a.png", bytes(1_000_000)))
    monkeypatch.setattr("pipeline.data.archives.MAX_FILE_BYTES", 1000)
    with pytest.raises(BadInput, match=r"more than 1,000 bytes: 'a\.png'"):
        list_files(path).refuse("bomb.zip")
    with pytest.raises(ValueError, match="more than 1,000"):
        read_file(path, "a.png")


def test_a_file_of_which_a_zip_says_that_it_is_small_takes_little_memory(tmp_path):
    path = zip_with(tmp_path / "lie.zip", ("a.png", bytes(64_000_000)))
    data = path.read_bytes()
    path.write_bytes(data.replace((64_000_000).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    list_files(path)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="cannot be unpacked"):
            read_file(path, "a.png")
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_a_flipped_bit_in_a_zip_is_noticed(tmp_path):
    path = zip_with(tmp_path / "a.zip", ("a.png", np.random.default_rng(0).bytes(5000)))
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="cannot be unpacked"):
        read_file(path, "a.png")


def cifar(tmp_path, data: bytes, names: bytes = b"cat\ndog\n"):
    return tar(tmp_path / "cifar.tar.gz", ("train.bin", data), ("names.txt", names))


def test_cifar_records_give_the_fine_label_and_pixels_by_channel(tmp_path):
    pixels = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072)
    data = b"".join(bytes([9, label]) + row.tobytes() for label, row in enumerate(pixels))
    splits = {"train": ["train.bin"]}
    class_names, arrays = read_cifar(cifar(tmp_path, data), splits, 2, (3, 32, 32), "names.txt")
    images, labels = arrays["train"]
    assert class_names == ("cat", "dog") and labels.tolist() == [0, 1]
    assert np.array_equal(images, pixels.reshape(2, 3, 32, 32))


def test_the_members_of_a_cifar_split_are_joined_in_order(tmp_path):
    records = {
        name: bytes([label]) + bytes([label * 9]) * 3072 for name, label in (("a", 1), ("b", 0), ("t", 1))
    }
    path = tar(tmp_path / "cifar.tar.gz", *records.items(), ("names.txt", b"cat\ndog\n"))
    _, arrays = read_cifar(path, {"train": ["a", "b"], "test": ["t"]}, 1, (3, 32, 32), "names.txt")
    assert arrays["train"][1].tolist() == [1, 0] and arrays["test"][1].tolist() == [1]
    assert arrays["train"][0][:, 2, 31, 31].tolist() == [9, 0]
