"""Published formats give the exact array, or an error with the file and the reason."""

import gzip
import struct
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.formats import read_digits, read_idx, read_idx_pair
from pipeline.errors import BadInput


def idx(shape: tuple[int, ...], data: bytes, magic: bytes | None = None) -> bytes:
    return (
        (bytes([0, 0, 8, len(shape)]) if magic is None else magic)
        + struct.pack(f">{len(shape)}I", *shape)
        + data
    )


pack = partial(gzip.compress, mtime=0)  # pytest puts the bytes into test names, which must not vary
GOOD = idx((2, 3, 2), bytes(range(12)))


def test_an_idx_file_is_read_exactly(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(pack(GOOD))
    assert np.array_equal(read_idx(path, 3), np.arange(12, dtype=np.uint8).reshape(2, 3, 2))


@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        (b"", "starts with nothing"),
        (pack(b""), "starts with nothing"),
        (b"plainly not gzip", "is damaged"),
        (pack(GOOD)[:-9], "is damaged"),
        (pack(GOOD)[:-4] + b"\0\0\0\0", "is damaged"),
        (pack(GOOD)[:12], "is damaged"),
        (pack(GOOD[:2]), "starts with 00 00"),
        (pack(GOOD[:9]), "ends within its header"),
        (pack(idx((2, 3, 2), bytes(12), magic=b"\0\0\x0d\x03")), "starts with 00 00 0d 03"),
        (pack(idx((12,), bytes(12))), "starts with 00 00 08 01"),
        (pack(idx((2, 3, 2), bytes(12), magic=b"\x03\x08\0\0")), "starts with 03 08"),
        (pack(idx((2, 3, 2), bytes(11))), r"11 bytes of values, but the shape \[2, 3, 2\]"),
        (pack(idx((2, 3, 2), bytes(13))), "13 bytes of values, but the shape"),
        (pack(idx((0, 3, 2), b"")), "0 bytes of values, but the shape"),
        (pack(idx((2**32 - 1,) * 3, bytes(12))), "12 bytes of values, but the shape"),
        (pack(idx((2**16, 2**16, 1), bytes(12))), r"the shape \[65536, 65536, 1\] in its header"),
        (pack(idx((100_000_000, 1, 1), bytes(12))), "12 bytes of values, but the shape"),
        (pack(GOOD) + b"rubbish", "is damaged"),
    ],
)
def test_a_broken_idx_file_is_refused_with_the_reason(tmp_path, packed, reason):
    path = tmp_path / "broken.gz"
    path.write_bytes(packed)
    with pytest.raises(BadInput, match=reason) as caught:
        read_idx(path, 3)
    assert "broken.gz" in str(caught.value)


def test_a_file_that_unpacks_to_too_many_bytes_is_refused(tmp_path, monkeypatch):
    (tmp_path / "bomb.gz").write_bytes(pack(GOOD + bytes(100)))
    monkeypatch.setattr("pipeline.data.formats.MAX_BYTES", 99)
    with pytest.raises(BadInput, match="more than the 99 bytes"):
        read_idx(tmp_path / "bomb.gz", 3)


@settings(max_examples=150, deadline=None)
@given(
    body=st.binary(max_size=40),
    shape=st.tuples(*[st.integers(0, 4)] * 3),
    packed=st.booleans(),
    header=st.booleans(),
)
def test_any_bytes_give_an_error_or_the_exact_array(tmp_path_factory, body, shape, packed, header):
    content = idx(shape, body) if header else body
    path = tmp_path_factory.mktemp("idx") / "any.gz"
    path.write_bytes(pack(content) if packed else content)
    try:
        array = read_idx(path, 3)
    except BadInput:
        assert not (packed and header and len(body) == np.prod(shape) > 0)
    else:
        assert packed and pack(idx(array.shape, array.tobytes())) == pack(content)


@pytest.mark.parametrize(
    ("images", "labels", "reason"),
    [
        (idx((2, 28, 28), bytes(1568)), idx((3,), bytes(3)), "3 labels for the 2 images"),
        (idx((2, 28, 27), bytes(1512)), idx((2,), bytes(2)), "not \\(1, 28, 28\\)"),
        (idx((2, 28, 28), bytes(1568)), idx((2,), b"\0\x0a"), "label 10; there are 10 classes"),
    ],
)
def test_images_and_labels_that_do_not_belong_together_are_refused(tmp_path, images, labels, reason):
    (tmp_path / "i.gz").write_bytes(pack(images))
    (tmp_path / "l.gz").write_bytes(pack(labels))
    with pytest.raises(BadInput, match=reason):
        read_idx_pair(tmp_path / "i.gz", tmp_path / "l.gz", (1, 28, 28), 10)


@pytest.mark.parametrize(
    "text", ["", "1,2,3", ",".join(["17"] * 64 + ["1"]), ",".join(["1"] * 64 + ["10"]), ",".join(["x"] * 65)]
)
def test_invalid_digits_are_refused(tmp_path, text):
    path = tmp_path / "digits.csv.gz"
    path.write_bytes(pack(text.encode()))
    with pytest.raises(BadInput, match=r"digits\.csv\.gz"):
        read_digits(path)


def test_the_brightest_digit_pixel_becomes_255(tmp_path):
    path = tmp_path / "digits.csv.gz"
    path.write_bytes(pack(",".join(["0", "8", "16", *["0"] * 61, "7"]).encode()))
    images, labels = read_digits(path)
    assert (
        images.shape == (1, 1, 8, 8)
        and images.ravel()[:3].tolist() == [0, 128, 255]
        and labels.tolist() == [7]
    )
