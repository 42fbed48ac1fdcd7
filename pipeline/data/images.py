"""Decode an image file into a uint8 array. The file is not trusted."""

import io

import numpy as np
from PIL import Image, ImageOps

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


def decode(data: bytes, channels: int, size: int) -> np.ndarray:
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
                raise BrokenImage(f"has {width} x {height} pixels, more than {MAX_PIXELS:,}")
            image.load()
            return fit(_flatten(ImageOps.exif_transpose(image)), channels, size)
    except (BrokenImage, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise BrokenImage("is not a PNG, JPEG, BMP or WebP image") from None
    except Exception as error:  # decoders raise many types: SyntaxError, struct.error, EOFError, ...
        raise BrokenImage(f"cannot be decoded ({error})") from None


def fit(image: Image.Image, channels: int, size: int) -> np.ndarray:
    """Resize the largest central square to uint8 (channels, size, size).

    Images are made smaller by Lanczos and larger by bicubic interpolation.
    """
    image = image.convert(MODES[channels])
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = (left, top, left + side, top + side)
    if side == size:
        image = image.crop(square)
    else:
        image = image.resize(
            (size, size), Image.Resampling.LANCZOS if side > size else Image.Resampling.BICUBIC, box=square
        )
    pixels = np.asarray(image, dtype=np.uint8).reshape(size, size, channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _flatten(image: Image.Image) -> Image.Image:
    if image.mode in WIDE_MODES:
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8))  # 65535 = 255 * 257
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")
