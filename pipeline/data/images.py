"""Decode an image file into a uint8 array. The file is not trusted."""

import io
import itertools
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
from PIL import Image, ImageOps, ImageSequence

from pipeline.data.settings import Fit

# What Pillow reads without other programs, by content and not by suffix.
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")
SUFFIXES = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".webp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".jpx"),
}
REFUSED_SUFFIXES = {
    *(
        ".heic",
        ".heif",
        ".svg",
        ".psd",
        ".ico",
        ".jxl",
        ".dng",
        ".cr2",
        ".cr3",
        ".nef",
        ".arw",
        ".raw",
        ".dcm",
    ),
}
SINGLE = ("MPO",)  # JPEG files with more pictures after their own, such as a preview or a depth map
MAX_PIXELS: int = Image.MAX_IMAGE_PIXELS or 0  # Pillow's own limit, 89 million
# Larger JPEG files are decoded at a reduced scale. Smaller ones are not: their pixels would change slightly.
MAX_FULL_PIXELS = 4096 * 4096
MODES = {1: "L", 3: "RGB"}  # by number of channels
WIDE_MODES = ("I;16", "I;16B", "I;16L", "I")  # 16 bits in one channel
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # the pixels


class BrokenImage(ValueError):
    """The bytes are not a valid image of a supported format and size. The message is the reason."""


def decode(data: bytes, channels: int, size: int, fit: Fit = "crop", bits: int = 16) -> np.ndarray:
    """Decode an image, or the first frame of an animation, to uint8 (channels, size, size).

    The EXIF orientation is applied if it can be read, transparent images are put on white, values of ``bits``
    bits in an image of 16 bits are scaled to 8, and colour profiles are ignored. The number of pixels is
    checked in the header before decoding. Raises ``BrokenImage``.
    """
    try:
        try:
            return _decode(data, channels, size, fit, bits)
        except (SyntaxError, ValueError, OSError):
            if not data.startswith(PNG_START) or (pixels := _pixel_chunks(data)) == data:
                raise
            return _decode(pixels, channels, size, fit, bits)  # without its damaged or oversized metadata
    except (BrokenImage, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise BrokenImage("is not an image of a supported format") from None
    except Exception as error:  # decoders raise many types: SyntaxError, struct.error, EOFError, ...
        raise BrokenImage(f"cannot be decoded ({error})") from None


def open_image(data: bytes) -> Image.Image:
    """The image, of which only the header is decoded. Raises ``BrokenImage`` for its size."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = image.size
    if width < 1 or height < 1:
        raise BrokenImage(f"has no pixels ({width} x {height})")
    if width * height > MAX_PIXELS:
        raise BrokenImage(f"has more than {MAX_PIXELS:,} pixels ({width} x {height})")
    return image


def frames(data: bytes) -> Iterator[Image.Image]:
    """The frames of an animation, or an image, upright, grey or RGB. Raises ``BrokenImage``."""
    try:
        with open_image(data) as image:
            limit = 1 if image.format in SINGLE else None
            for frame in itertools.islice(ImageSequence.Iterator(image), limit):
                frame.load()
                upright = frame.copy()  # it would change with the next frame
                with suppress(Exception):  # see `_turn_upright`
                    upright = ImageOps.exif_transpose(frame)
                yield flatten(upright)
    except (BrokenImage, MemoryError):
        raise
    except Exception as error:  # see `decode`
        raise BrokenImage(f"cannot be decoded ({error})") from None


def upright_size(data: bytes) -> tuple[int, int]:
    """Width and height after the EXIF orientation. Raises ``BrokenImage`` as :func:`open_image`."""
    with open_image(data) as image:
        _turn_upright(image)
        return image.size


def _decode(data: bytes, channels: int, size: int, fit: Fit, bits: int) -> np.ndarray:
    with open_image(data) as image:
        if image.width * image.height > MAX_FULL_PIXELS:
            scale = 4 * size / min(image.size)  # four times what is needed, for the filter of `resize`
            image.draft(None, (int(image.width * scale) + 1, int(image.height * scale) + 1))
        image.load()
        _turn_upright(image)
        return resize_array(flatten(image, bits), channels, size, fit)


def _turn_upright(image: Image.Image) -> None:
    """Apply the EXIF orientation, if it can be read."""
    with suppress(Exception):  # struct.error, SyntaxError, ValueError, ...: EXIF data are not trusted
        ImageOps.exif_transpose(image, in_place=True)


def _pixel_chunks(data: bytes) -> bytes:
    """A PNG file without all that are not pixels: text, colour profile, EXIF, ..."""
    kept, at = [PNG_START], len(PNG_START)
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4])  # length, type, content, checksum
        if data[at + 4 : at + 8] in PNG_CHUNKS:
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def resize(image: Image.Image, size: int, fit: Fit = "crop", kind: str = "image") -> Image.Image:
    """``image`` as a square with sides of ``size`` pixels.

    ``fit`` says what is done with an image that is not square: ``crop`` takes the largest central square,
    ``pad`` adds bars of value 0 (black) to the shorter sides, ``stretch`` changes the proportions. Images are
    made smaller by Lanczos and larger by bicubic interpolation. A "label_map" has the value of the nearest
    pixel, so that labels are not mixed, and bars of value 255 (ignored).
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
    square = Image.new(image.mode, (size, size), 255 if kind == "label_map" else 0)
    square.paste(image, ((size - shape[0]) // 2, (size - shape[1]) // 2))
    return square


def resize_array(image: Image.Image, channels: int, size: int, fit: Fit = "crop") -> np.ndarray:
    """``image``, resized, as uint8 (channels, size, size)."""
    pixels = np.asarray(resize(image.convert(MODES[channels]), size, fit), dtype=np.uint8)
    return np.ascontiguousarray(pixels.reshape(size, size, channels).transpose(2, 0, 1))


def from_array(image: np.ndarray) -> Image.Image:
    """The picture of a uint8 array (C, H, W), grey or RGB."""
    return Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))


def flatten(image: Image.Image, bits: int = 16) -> Image.Image:
    """``image`` as grey or RGB, see :func:`decode`."""
    if image.mode in WIDE_MODES:
        return Image.fromarray(_to_bytes(np.asarray(image), bits))
    if image.mode == "F":
        raise BrokenImage("has floating-point values: their range is not known; save it with 8 or 16 bits")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")


def _to_bytes(values: np.ndarray, bits: int) -> np.ndarray:
    """Values of ``bits`` bits as uint8."""
    limit = 2**bits - 1
    if bits < 16 and values.max() > limit:
        remedy = f"set data.bit_depth to {'12' if values.max() < 4096 else '16'}"
        raise BrokenImage(f"has the value {values.max()}, more than {bits} bits: {remedy}")
    wide = values.astype(np.int64).clip(0, limit)
    return ((wide * 255 + limit // 2) // limit).astype(np.uint8)
