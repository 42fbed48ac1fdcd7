"""params.yaml: accepted values, and error messages for all others."""

import os

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


@pytest.mark.parametrize(
    ("values", "where", "remedy"),
    [
        ("{sorce: digits}", "data.sorce", "did you mean 'source'?"),
        ("{zzz: 1}", "data.zzz", "known here: bit_depth, color, fit, folder"),
        ("{seed: 'one'}", "data.seed", "correct the value"),
        ("{seed: 1.5}", "data.seed", "correct the value"),
        ("{seed: true}", "data.seed", "correct the value"),
        ("{seed: null}", "data.seed", "correct the value"),
        ("{seed: -1}", "data.seed", "correct the value"),
        ("{seed: 2147483648}", "data.seed", "correct the value"),
        ("{source: 1}", "data.source", "correct the value"),
        ("{source: [digits]}", "data.source", "correct the value"),
        ("{color: blue}", "data.color", "correct the value"),
        ("{image_size: 100000}", "data.image_size", "correct the value"),
        ("{validation_fraction: 0}", "data.validation_fraction", "correct the value"),
        ("{test_fraction: 0.9}", "data.test_fraction", "correct the value"),
        ("{max_bad_fraction: -0.1}", "data.max_bad_fraction", "correct the value"),
        ("{source: 1, seed: x}", "data.source", "also .*data.seed"),
        ("[1, 2]", "data", "correct the value"),
        ("digits", "data", "correct the value"),
        ("", "data", "correct the value"),
    ],
)
def test_a_wrong_value_is_refused_with_its_place_and_remedy(tmp_path, values, where, remedy):
    path = write(tmp_path, f"data: {values}\n")
    with pytest.raises(BadInput, match=remedy) as caught:
        read_section("data", DataSettings, path)
    assert f"params.yaml: {where}:" in str(caught.value) and len(str(caught.value).splitlines()) <= 5


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("data: {seed: .nan}", "not plain and finite"),
        ("data: {seed: .inf}", "not plain and finite"),
        ("data: {validation_fraction: 1e999}", "not plain and finite"),
        ("data: {seed: 1, seed: 2}", "seed"),
        ("data: &a {seed: 1}\nother: *a", "aliases"),
        ("data: {seed: 2020-01-01}", "not plain and finite"),
        ("data: !!python/object/apply:os.system ['true']", "cannot be read"),
        ("data:\n\tseed: 1", "line 2"),
        ("data: {seed: 1", "cannot be read"),
        ("data: " + "[" * 4000 + "]" * 4000, "line 1: is nested more than 50 deep"),
        ("data: " + "{a: " * 200 + "1" + "}" * 200, "line 1: is nested more than 50 deep"),
        ("\n".join(" " * depth + "a:" for depth in range(200)), "line 51: is nested more than 50 deep"),
        ("- 1\n- 2", "not a mapping"),
        ("just text", "not a mapping"),
        ("", "not a mapping"),
        ("data: {seed: 1}".encode("utf-16"), "not UTF-8"),
        (b"data: \xff", "not UTF-8"),
        ("data: {seed: 1}\n#" + "x" * 1_000_001, "larger than 1,000,000 bytes"),
        ("dta: {seed: 1}", "is 'dta' meant to be 'data'"),
        ("model: {seed: 1}", "has no section 'data'"),
    ],
)
def test_a_file_that_is_no_plain_mapping_is_refused(tmp_path, text, reason):
    with pytest.raises(BadInput, match=reason) as caught:
        read_section("data", DataSettings, write(tmp_path, text))
    assert "params.yaml" in str(caught.value) and "->" in str(caught.value)


def test_a_fifo_is_refused_instead_of_waiting_for_its_writer(tmp_path):
    os.mkfifo(tmp_path / "params.yaml")
    with pytest.raises(BadInput, match=r"params\.yaml: is not a regular file"):
        read_file(tmp_path / "params.yaml")


def test_a_byte_order_mark_does_no_harm(tmp_path):
    assert read_file(write(tmp_path, b"\xef\xbb\xbfdata: {seed: 1}")) == {"data": {"seed": 1}}


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadInput, match="run from the project's root"):
        read_file(tmp_path / "params.yaml")


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
