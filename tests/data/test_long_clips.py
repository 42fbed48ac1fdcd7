"""Long clips of a user's folder."""

import numpy as np
import pytest

from pipeline.data.clips import compose as compose_module
from tests.data.test_clip_folders import LENGTH, NUM_CLIPS, animation, clips_of, made, pixels, write_frames
from tests.data.test_preprocess import tree


@pytest.mark.parametrize("layout", ["frames", "gif", "npy"])
def test_long_clips_are_decoded_in_parts(tmp_path, monkeypatch, layout):
    clips = np.stack([pixels(number, 7 * LENGTH + 1) for number in range(NUM_CLIPS)])
    if layout == "npy":
        (tmp_path / "own").mkdir()
        np.save(tmp_path / "own/clips.npy", clips)
    for number, clip in enumerate(clips if layout != "npy" else ()):
        if layout == "gif":
            (tmp_path / "own").mkdir(exist_ok=True)
            (tmp_path / f"own/{number}.gif").write_bytes(animation(clip, "gif"))
        else:
            write_frames(tmp_path / f"own/{number}", clip, digits=2)
    whole = made(tmp_path)
    monkeypatch.setattr(compose_module, "NUM_AT_A_TIME", 3 * LENGTH)
    parts, decoded = made(tmp_path, "parts"), compose_module._pixels
    sizes = []
    monkeypatch.setattr(
        compose_module, "_pixels", lambda *args: sizes.append(len(found := decoded(*args))) or found
    )
    made(tmp_path, "again")
    assert tree(parts.folder) == tree(whole.folder) and len(clips_of(parts)) == 7 * NUM_CLIPS
    assert sorted(set(sizes)) == [1, 3]
