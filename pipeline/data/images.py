"""Decode an image file into a uint8 array. The file is not trusted."""

import io

import numpy as np
from PIL import Image, ImageOps

from pipeline.data.settings import Fit

FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
REFUSED_SUFFIXES = frozenset(
    {".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".ppm", ".pgm", ".svg", ".psd", ".ico"}
)
MAX_PIXELS = 4096 * 4096
MODES = {1: "L", 3: "RGB"}  # by number of channels
WIDE_MODES = ("I;16", "I;16B", "I;16L", "I")  # 16 bits in one channel


class BrokenImage(ValueError):
    """The bytes are not a valid image of a supported format and size. The message is the reason."""


def decode(data: bytes, channels: int, size: int, fit: Fit = "crop") -> np.ndarray:
    """Decode an image, or the first frame of an animation, to uint8 (channels, size, size).

    The EXIF orientation is applied, transparent images are put on white, 16 bits are scaled to 8, and colour
    profiles are ignored. The number of pixels is checked in the header before decoding. Raises
    ``BrokenImage``.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width < 1 or height < 1:
                raise BrokenImage(f"has no pixels ({width} x {height})")
            if width * height > MAX_PIXELS:
                raise BrokenImage(f"has more than {MAX_PIXELS:,} pixels ({width} x {height})")
            image.load()
            return resize_array(_flatten(ImageOps.exif_transpose(image)), channels, size, fit)
    except (BrokenImage, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise BrokenImage("is not a PNG, JPEG, BMP or WebP image") from None
    except Exception as error:  # decoders raise many types: SyntaxError, struct.error, EOFError, ...
        raise BrokenImage(f"cannot be decoded ({error})") from None


def resize(image: Image.Image, size: int, fit: Fit = "crop", kind: str = "image") -> Image.Image:
    """``image`` as a square with sides of ``size`` pixels.

    ``fit`` says what is done with an image that is not square: ``crop`` takes the largest central square,
    ``pad`` adds bars of value 0 (black) to the shorter sides, ``stretch`` changes the proportions. Images are
    made smaller by Lanczos and larger by bicubic interpolation. A "label_map" has the value of the nearest
    pixel, so that labels are not mixed.
    """
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side) if fit == "crop" else (0, 0, width, height)
    taken = (box[2] - box[0], box[3] - box[1])
    longest = max(taken)
    shape = (size, size)
    if fit == "pad":
        shape = (max(1, round(width * size / longest)), max(1, round(height * size / longest)))
    if taken == shape:
        image = image.crop(box)
    else:
        method = Image.Resampling.LANCZOS if longest > size else Image.Resampling.BICUBIC
        image = image.resize(shape, Image.Resampling.NEAREST if kind == "label_map" else method, box=box)
    if shape == (size, size):
        return image
    square = Image.new(image.mode, (size, size))
    square.paste(image, ((size - shape[0]) // 2, (size - shape[1]) // 2))
    return square


def resize_array(image: Image.Image, channels: int, size: int, fit: Fit = "crop") -> np.ndarray:
    """``image``, resized, as uint8 (channels, size, size)."""
    pixels = np.asarray(resize(image.convert(MODES[channels]), size, fit), dtype=np.uint8)
    return np.ascontiguousarray(pixels.reshape(size, size, channels).transpose(2, 0, 1))


def from_array(image: np.ndarray) -> Image.Image:
    """The picture of a uint8 array (C, H, W), grey or RGB."""
    return Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))


def _flatten(image: Image.Image) -> Image.Image:
    if image.mode in WIDE_MODES:
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8))  # 65535 = 255 * 257
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")
