"""Read masks: label maps in files without loss, such as PNG, and tables of colours. Files are not trusted."""

import re
from collections.abc import Mapping

import numpy as np
from PIL import Image

from pipeline.data.images import WIDE_MODES, BrokenImage, open_image
from pipeline.errors import listed
from pipeline.layers.label_maps import IGNORED

INDEX_MODES = ("1", "L", "P", *WIDE_MODES)
COLOR_MODES = ("RGB", "RGBA")
NOT_LABELLED = ("void", "ignore", "ignored", "unlabelled", "unlabeled")  # names of colours without a class
NUMBERS = r"(?P<red>\d{1,3})[\s,;]+(?P<green>\d{1,3})[\s,;]+(?P<blue>\d{1,3})"
LINE = re.compile(rf"(?P<name>\D.*?)[\s,;]+{NUMBERS}"), re.compile(rf"{NUMBERS}[\s,;]+(?P<name>\S.*)")


def read_mask(data: bytes, colors: Mapping[int, int]) -> np.ndarray:
    """The label map (H, W), uint8, of a mask: class indices, also with a palette, or colours.

    ``colors`` has the class of each colour, 65536 R + 256 G + B; with it, a palette is read by its colours.
    Raises ``BrokenImage`` with the reason.
    """
    try:
        with open_image(data) as image:
            image.load()
            read = image.convert("RGB") if colors and image.mode == "P" else image
            mode, values = read.mode, np.asarray(read)
    except BrokenImage:
        raise
    except Image.UnidentifiedImageError:
        raise BrokenImage("is not an image of a supported format") from None
    except Exception as error:  # decoders raise many types, as in images.decode
        raise BrokenImage(f"cannot be decoded ({error})") from None
    if mode in INDEX_MODES:
        if values.max() > IGNORED:
            raise BrokenImage(f"has the value {values.max()}: class indices are below {IGNORED}")
        return values.astype(np.uint8)
    if mode not in COLOR_MODES:
        raise BrokenImage(f"has the mode {mode}: masks have class indices, a palette or RGB colours")
    if not colors:
        raise BrokenImage("has RGB colours: set scenes.colors to a table of them")
    return _classes_of(values[..., :3], colors)


def _classes_of(values: np.ndarray, colors: Mapping[int, int]) -> np.ndarray:
    codes = values.astype(np.int64) @ np.array([65536, 256, 1])
    found, places = np.unique(codes, return_inverse=True)
    unknown = [
        f"{code >> 16} {code >> 8 & 255} {code & 255}" for code in found.tolist() if code not in colors
    ]
    if unknown:
        raise BrokenImage(f"has colours that are not in the table ({listed(unknown)})")
    classes = np.array([colors[code] for code in found.tolist()], np.uint8)
    return classes[places].reshape(codes.shape)


def read_colors(text: str) -> tuple[tuple[str, ...], dict[int, int]]:
    """The classes of a table of colours, and the class of each colour as in :func:`read_mask`.

    A line has a name and red, green and blue, in either order. The first is the background; colours named
    void or ignore are ignored. Raises ``ValueError`` that names all other lines.
    """
    names, colors, wrong = list[str](), dict[int, int](), list[int]()
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#") or (number == 1 and not re.search(r"\d", line)):
            continue
        found = next((match for pattern in LINE if (match := pattern.fullmatch(line))), None)
        values = [int(found[part]) for part in ("red", "green", "blue")] if found else []
        code = sum(value << shift for value, shift in zip(values, (16, 8, 0)))
        if not found or max(values) > 255 or code in colors:
            wrong.append(number)
        elif found["name"].lower() in NOT_LABELLED:
            colors[code] = IGNORED
        else:
            colors[code] = len(names)
            names.append(found["name"])
    if wrong:
        raise ValueError(f"line {listed(wrong)} is not a name and a new colour, such as: road 128 64 128")
    if not 1 < len(names) < IGNORED:
        raise ValueError(
            f"it has {len(names)} classes: 2 to {IGNORED - 1} are possible, the background first"
        )
    return tuple(names), colors
