"""Random changes of valid files: each parser gives a valid result, or an error that names the file.

A few seconds every day; every night 150 times as many. An input that was found becomes a named case.
"""

import gzip
import io
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.core.dataset import Dataset
from pipeline.data.archives import MAX_FILE_BYTES, leads_outside
from pipeline.data.folders import open_archive
from pipeline.data.formats import read_idx
from pipeline.data.images import BrokenImage, decode
from pipeline.errors import BadInput
from pipeline.params import read_file
from pipeline.settings_check import find_faults
from tests.bad_input.archives import PICTURES, tar, zip_with
from tests.bad_input.idx import idx, pack
from tests.data.conftest import encoded
from tests.data.layouts import labels, pixels
from tests.project import PARAMS, ROOT

DAILY, NIGHTLY = 20, 3_000
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
runs = pytest.mark.parametrize("count", [DAILY, pytest.param(NIGHTLY, marks=pytest.mark.nightly)])
PLACE, KEPT = st.floats(0, 1), st.binary(max_size=6)
EDITS = st.lists(st.tuples(PLACE, st.integers(0, 8), KEPT), min_size=1, max_size=4)


def changed(data: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    """``data`` with some bytes replaced: at each place so many are removed, and others inserted."""
    for place, removed, inserted in edits:
        at = round(place * len(data))
        data = data[:at] + inserted + data[at + removed :]
    return data


def fuzz(count: int, check, *strategies) -> None:
    """Call ``check`` with ``count`` random inputs."""
    options = {"max_examples": count, "deadline": None, "suppress_health_check": CHECKS}
    settings(**options)(given(*strategies)(check))()


def npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, images=pixels(6, 4, 4), labels=labels(6))
    return stream.getvalue()


YAML = (ROOT / "params.yaml").read_bytes()[:2_000]
TEXTS = st.text(st.sampled_from("abc: -[]{}'\"\n\t#&*!|>%@,?.0123456789e~\\"), max_size=60).map(str.encode)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@runs
def test_any_text_is_a_mapping_or_refused(tmp_path, count):
    path = tmp_path / "params.yaml"

    def check(text: bytes) -> None:
        path.write_bytes(text)
        try:
            json.dumps(read_file(path), allow_nan=False)
        except BadInput as error:
            assert str(path) in error.where and error.remedy

    fuzz(count, check, TEXTS | EDITS.map(lambda edits: changed(YAML, edits)))


@runs
def test_any_value_of_any_setting_is_accepted_or_named(tmp_path, count):
    path = tmp_path / "params.yaml"
    names = [(section, name) for section, values in PARAMS.items() for name in [*values, "new"]]

    def check(place: tuple[str, str], value: object) -> None:
        section, name = place
        path.write_text(json.dumps({**PARAMS, section: {**PARAMS[section], name: value}}))
        for fault in find_faults(path)[1]:
            assert isinstance(fault, BadInput) and fault.remedy and section in fault.where

    fuzz(count, check, st.sampled_from(names), PLAIN)


@runs
def test_a_changed_manifest_is_refused_or_gives_the_same_data(processed_digits, tmp_path, count):
    folder = tmp_path / "images"
    folder.mkdir()
    for path in processed_digits.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "manifest.json").unlink()
    text = (processed_digits / "manifest.json").read_bytes()
    expected = len(Dataset.open(processed_digits).train)

    def check(data: bytes) -> None:
        (folder / "manifest.json").write_bytes(data)
        try:
            assert len(Dataset.open(folder).train) == expected
        except BadInput as error:
            assert str(folder) in error.where and error.remedy

    fuzz(count, check, EDITS.map(lambda edits: changed(text, edits)))


@runs
@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar", "npz"])
def test_a_changed_archive_is_refused_or_leads_nowhere_outside(tmp_path, count, kind):
    path = tmp_path / f"a.{kind}"
    zip_with(path, *PICTURES.items()) if kind == "zip" else tar(path, *PICTURES.items())
    whole = npz() if kind == "npz" else path.read_bytes()
    whole = gzip.decompress(whole) if kind == "tar" else whole

    def check(edits: list[tuple[float, int, bytes]]) -> None:
        path.write_bytes(changed(whole, edits))
        try:
            archive = open_archive(path)
        except BadInput as error:
            assert str(path) in error.where and error.remedy
            return
        if not archive.faults:
            assert not any(map(leads_outside, archive.files))
        for name in archive.files[:3]:
            try:
                assert len(archive.read(name)) <= MAX_FILE_BYTES
            except ValueError as error:
                assert str(error)

    fuzz(count, check, EDITS)


@runs
def test_a_changed_idx_file_is_refused_or_exact(tmp_path, count):
    path, plain = tmp_path / "a.gz", idx((4, 3, 2), bytes(range(24)))

    def check(edits: list[tuple[float, int, bytes]], inside: bool) -> None:
        path.write_bytes(pack(changed(plain, edits)) if inside else changed(pack(plain), edits))
        try:
            array = read_idx(path, 3)
        except BadInput as error:
            assert str(path) in error.where and error.remedy
        else:
            assert inside or array.tobytes() == plain[16:]

    fuzz(count, check, EDITS, st.booleans())


@runs
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM"])
def test_a_changed_picture_is_refused_or_has_the_right_shape(count, kind):
    whole = encoded(1, (9, 9), kind)

    def check(edits: list[tuple[float, int, bytes]]) -> None:
        try:
            assert decode(changed(whole, edits), 3, 8).shape == (3, 8, 8)
        except BrokenImage as error:
            assert str(error)

    fuzz(count // 3, check, EDITS)
