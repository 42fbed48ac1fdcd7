"""Published formats give the exact array, or an error with the file and the reason."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.formats import read_digits, read_idx
from pipeline.errors import BadInput
from tests.bad_input.idx import BROKEN, GOOD, idx, pack


def test_an_idx_file_is_read_exactly(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(pack(GOOD))
    assert np.array_equal(read_idx(path, 3), np.arange(12, dtype=np.uint8).reshape(2, 3, 2))


@pytest.mark.parametrize(("packed", "reason"), BROKEN.values(), ids=BROKEN)
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


def test_the_brightest_digit_pixel_becomes_255(tmp_path):
    path = tmp_path / "digits.csv.gz"
    path.write_bytes(pack(",".join(["0", "8", "16", *["0"] * 61, "7"]).encode()))
    images, labels = read_digits(path)
    assert (
        images.shape == (1, 1, 8, 8)
        and images.ravel()[:3].tolist() == [0, 128, 255]
        and labels.tolist() == [7]
    )
