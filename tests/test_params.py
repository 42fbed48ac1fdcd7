"""params.yaml: accepted values. What is refused is in tests/bad_input/params.py."""

import pytest

from pipeline.data.settings import DataSettings
from pipeline.errors import BadInput
from pipeline.params import Section, read_file, read_section


class Inner(Section):
    rate: float = 0.5


class Outer(Section):
    inner: Inner = Inner()
    sizes: tuple[int, ...] = (1,)


def write(tmp_path, text: str | bytes):
    path = tmp_path / "params.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_section_is_read_and_the_rest_is_default(tmp_path):
    path = write(tmp_path, "data:\n  source: mnist\n  validation_fraction: 1e-1\nother: {a: 1}\n")
    assert read_section("data", DataSettings, path) == DataSettings(source="mnist", validation_fraction=0.1)


def test_a_section_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        DataSettings().seed = 1


def test_a_byte_order_mark_does_no_harm(tmp_path):
    assert read_file(write(tmp_path, b"\xef\xbb\xbfdata: {seed: 1}")) == {"data": {"seed": 1}}


def test_yaml_1_2_words_and_numbers_are_what_they_look_like(tmp_path):
    assert read_file(write(tmp_path, "a: {no: yes, on: off, rate: 1e-4, mode: 010}")) == {
        "a": {"no": "yes", "on": "off", "rate": 0.0001, "mode": 10}
    }


def test_a_misspelt_key_of_a_nested_section_names_the_nearest(tmp_path):
    with pytest.raises(BadInput, match=r"outer\.inner\.rat: no such setting\n.*'rate'"):
        read_section("outer", Outer, write(tmp_path, "outer: {inner: {rat: 1}}"))
    assert read_section(
        "outer", Outer, write(tmp_path, "outer: {sizes: [3, 4], inner: {rate: 1}}")
    ).sizes == (3, 4)
