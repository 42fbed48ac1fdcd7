"""Moving MNIST's protocol: pictures bounce on a larger black canvas.

Srivastava et al. 2015, "Unsupervised Learning of Video Representations using LSTMs". Here a picture that
meets an edge is reflected, so that its speed is constant.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from pipeline.core.dataset import SPLITS, Split
from pipeline.core.fields import chunks
from pipeline.data.clips.settings import DIRECTIONS, ClipSettings

CHUNK_BYTES = 64_000_000  # of the clips in memory


def paths(start: np.ndarray, velocity: np.ndarray, num_frames: int) -> np.ndarray:
    """Positions (num_frames, ...) in [0, 1], by frame, of what begins at ``start`` (...) in [0, 1]."""
    frames = np.arange(num_frames).reshape(-1, *[1] * start.ndim)
    return 1 - np.abs(1 - (start + velocity * frames) % 2)  # the way there and back, folded


def draw(split: str, index: int, num_pictures: int, settings: ClipSettings) -> tuple[np.ndarray, ...]:
    """Pictures (K,), starts (K, 2) and angles (K,) of a clip: a function of seed, split and index alone."""
    random, count = np.random.default_rng([settings.seed, SPLITS.index(split), index]), settings.num_objects
    chosen, angles = random.integers(num_pictures, size=count), random.uniform(0, 2 * np.pi, count)
    return chosen, random.uniform(size=(count, 2)), angles


def moving_clips(
    name: str, split: Split, canvas: int, settings: ClipSettings
) -> Iterator[Mapping[str, np.ndarray]]:
    """The clips (n, T, C, canvas, canvas) of the split ``name`` in chunks, of the pictures of ``split``."""
    channels, side, _ = split.spec["image"].shape
    shape = (settings.num_frames, channels, canvas, canvas)
    for indices in chunks(settings.count(name), max(1, CHUNK_BYTES // int(np.prod(shape)))):
        clips, labels = np.zeros((len(indices), *shape), np.uint8), np.zeros(len(indices), np.int64)
        for row, index in enumerate(indices.tolist()):
            chosen, start, angles = draw(name, index, len(split), settings)
            rows = split.rows(chosen)
            velocity = settings.speed * np.stack([np.sin(angles), np.cos(angles)], 1)
            corners = np.rint(paths(start, velocity, settings.num_frames) * (canvas - side))
            for frame, tops_and_lefts in zip(clips[row], corners.astype(np.int64)):
                for image, (top, left) in zip(rows["image"], tops_and_lefts):
                    area = frame[:, top : top + side, left : left + side]
                    np.maximum(area, image, out=area)
            quarter = int(np.rint(angles[0] / (np.pi / 2))) % len(DIRECTIONS)
            labels[row] = rows["label"][0] if settings.labels == "class" else quarter
        yield {"clip": clips} | ({"label": labels} if settings.labels != "none" else {})
