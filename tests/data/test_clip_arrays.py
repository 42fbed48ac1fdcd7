"""Clips in .npy and .npz files: what is refused."""

import io
import zipfile

import numpy as np
import pytest

from tests.data.test_clip_folders import (
    LENGTH,
    NUM_CLIPS,
    SIDE,
    in_npz,
    pixels,
    require_refused,
)


def negative(root):
    np.save(root / "clip3.npy", np.full((2, LENGTH, SIDE, SIDE), -0.5))


def other_scales(root):
    np.save(root / "train.npy", np.full((2, LENGTH, SIDE, SIDE), 0.5))
    np.save(root / "test.npy", np.full((2, LENGTH, SIDE, SIDE), 1.05))


def other_types(root):
    np.savez(
        root / "both.npz",
        **{
            name: np.full((2, LENGTH, SIDE, SIDE), value, np.uint16)
            for name, value in (("dark", 200), ("light", 300))
        },
    )


def cut_npz(root):
    in_npz(root / "npz")
    path = root / "npz/clips.npz"
    path.write_bytes(path.read_bytes()[:-40])


def damaged_npz(root):
    stream = io.BytesIO()
    np.savez_compressed(stream, all=np.stack([pixels(number) for number in range(NUM_CLIPS)]))
    data = bytearray(stream.getvalue())
    data[100:140] = bytes(40)
    (root / "clip3.npz").write_bytes(data)


def encrypted_npz(root):
    in_npz(root / "npz")
    path = root / "npz/clips.npz"
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)


def no_array_in_npz(root):
    with zipfile.ZipFile(root / "clip3.npz", "w") as file:
        file.writestr("notes.txt", "text")


FAULTS = {
    negative: ("negative values", "clip3.npy (from -0.5)"),
    other_scales: ("scaled differently", "test.npy (float64, up to 1.05)", "train.npy (float64, up to 0.5)"),
    other_types: ("scaled differently", "both.npz[dark] (uint16, up to 200)", "both.npz[light] (uint16, up"),
    cut_npz: ("cannot be read", "npz/clips.npz"),
    damaged_npz: ("cannot be read", "clip3.npz"),
    encrypted_npz: ("cannot be read", "npz/clips.npz"),
    no_array_in_npz: ("finite", "clip3.npz[notes.txt]"),
}


@pytest.mark.parametrize("spoil", FAULTS, ids=[spoil.__name__ for spoil in FAULTS])
def test_a_wrong_array_is_refused_by_name_and_nothing_is_written(tmp_path, spoil):
    require_refused(tmp_path, spoil, FAULTS[spoil])
