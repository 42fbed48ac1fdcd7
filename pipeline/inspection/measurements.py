"""Decode each picture once, and measure it."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import ImageFilter, ImageStat

from pipeline.data.folders import read_file
from pipeline.data.images import decode, from_array, open_image
from pipeline.data.reading import Entry
from pipeline.limits import cpu_count

SIDE = 64  # pixels: brightness and sharpness are measured at this size
LOOK_SIDE = 32  # pixels, for near-duplicates
CHUNK = 64  # pictures at a time


@dataclass(frozen=True)
class Picture:
    """What is known about one picture. ``reason`` says why it cannot be read; the rest is then empty."""

    entry: Entry
    reason: str = ""
    format: str = "unknown"
    mode: str = "unknown"
    width: int = 0  # 0: the header cannot be read by itself
    height: int = 0
    brightness: float = 0.0  # mean, from 0 to 1
    sharpness: float = 0.0  # standard deviation of the edges
    grey: bool = False  # whether its colours are greys
    look: np.ndarray | None = field(default=None, repr=False)  # uint8 (1, LOOK_SIDE, LOOK_SIDE)


def measure_all(
    path: Path, entries: Sequence[Entry], bits: int, show: Callable[[int], None]
) -> Iterator[Picture]:
    """Measure the pictures in the folder or archive ``path``, in order.

    ``bits``: those of the values in images with 16 bits for each pixel. ``show`` is called with the number of
    pictures that are done.
    """
    with ThreadPoolExecutor(min(8, cpu_count())) as pool:
        for start in range(0, len(entries), CHUNK):
            chunk = entries[start : start + CHUNK]
            yield from pool.map(lambda entry: measure(path, entry, bits), chunk)
            show(start + len(chunk))


def measure(path: Path, entry: Entry, bits: int) -> Picture:
    """Decode and measure one picture."""
    try:
        data = read_file(path, entry.path)
        pixels = decode(data, 3, SIDE, "stretch", bits)
    except (ValueError, OSError) as error:
        return Picture(entry, reason=str(error))
    header: tuple[str, str, int, int] = ("unknown", "unknown", 0, 0)
    with suppress(Exception), open_image(data) as image:
        header = (image.format or "unknown", image.mode, *image.size)
    small = from_array(pixels)
    edges = small.convert("L").filter(ImageFilter.FIND_EDGES)  # at the border it keeps the pixels
    return Picture(
        entry,
        "",
        *header,
        brightness=float(pixels.mean() / 255),
        sharpness=ImageStat.Stat(edges.crop((1, 1, SIDE - 1, SIDE - 1))).stddev[0],
        grey=bool((pixels == pixels[:1]).all()),
        look=np.asarray(small.convert("L").resize((LOOK_SIDE, LOOK_SIDE)))[None],
    )


def thumbnail(path: Path, name: str, bits: int) -> np.ndarray:
    """The picture ``name`` with black bars, uint8 (3, SIDE, SIDE)."""
    return decode(read_file(path, name), 3, SIDE, "pad", bits)
