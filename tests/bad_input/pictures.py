"""D3: pictures that are broken, and unusual ones that are read."""

import io
import struct
import zlib
from pathlib import Path

from PIL import Image

from tests.bad_input.case import Build, Case, with_data, write
from tests.data.conftest import encoded
from tests.data.layouts import folder

BOTH = ("download", "preprocess")


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The bytes of an image file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG file of this size without pixels."""
    return png(struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), zlib.compress(b""))


def png(header: bytes, pixels: bytes) -> bytes:
    """A PNG file with these contents of its chunks."""
    head, tail = b"IHDR" + header, b"IDAT" + pixels
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
        for part in (head, tail, b"IEND")
    )


PNG = encoded(1, (64, 64), "PNG")
SMALL = Image.new("RGB", (4, 4))
# The bytes, and a regular expression for the reason.
BROKEN = {
    "an empty file": (b"", "is not an image of a supported format"),
    "text": (b"text", "is not an image of a supported format"),
    "a PDF": (saved(SMALL, "PDF"), "is not an image of a supported format"),
    "a TGA": (saved(SMALL, "TGA"), "is not an image of a supported format"),
    "an SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not an image of a supported format"),
    "a pickle": (b"\x80\x04N.", "is not an image of a supported format"),
    "floating-point numbers": (saved(Image.new("F", (4, 4)), "TIFF"), "floating-point"),
    "a JPEG that is cut off": (encoded(1, (64, 64), "JPEG")[:-300], "cannot be decoded"),
    "a PNG that is cut off": (PNG[:-300], "cannot be decoded"),
    "a BMP that is cut off": (encoded(1, (64, 64), "BMP")[:-300], "cannot be decoded"),
    "a WebP that is cut off": (encoded(1, (64, 64), "WEBP")[:-300], "cannot be decoded|not an image"),
    "a GIF that is cut off": (saved(Image.new("L", (64, 64)), "GIF")[:20], "cannot be decoded|not an image"),
    "a TIFF that is cut off": (encoded(1, (64, 64), "TIFF")[:200], "cannot be decoded|not an image"),
    "zeros within a PNG": (PNG[:500] + bytes(40) + PNG[540:], "cannot be decoded"),
    "a PNG with a wrong checksum": (PNG[:29] + b"\0\0\0\0" + PNG[33:], "cannot be decoded|not an image"),
    "100 megapixels": (png_header(10_000, 10_000), r"more than 89,478,485 pixels \(10000 x 10000\)"),
    "3,600 megapixels": (png_header(60_000, 60_000), "more than 89,478,485 pixels|cannot be decoded"),
    "no pixels in a PNG": (png_header(4, 4), "cannot be decoded"),
    "no width": (png_header(0, 4), "no pixels|cannot be decoded|not an image"),
    "a decompression bomb": (
        png(struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0), zlib.compress(bytes(2501 * 20_000))),
        "400000000 pixels",
    ),
}
TURNED = Image.Exif()
TURNED[0x0112] = 6  # turned by 90 degrees
READ = {
    "16 bits": saved(Image.new("I;16", (9, 9), 40_000)),
    "a palette": saved(Image.new("P", (9, 9), 3)),
    "CMYK": saved(Image.new("CMYK", (9, 9)), "JPEG"),
    "transparency": saved(Image.new("RGBA", (9, 9))),
    "an animation": saved(SMALL, "GIF", save_all=True, append_images=[Image.new("RGB", (4, 4), 9)]),
    "a turned photograph": saved(Image.new("RGB", (9, 5)), "JPEG", exif=TURNED),
    "a wrong suffix": saved(SMALL, "JPEG"),
    "one pixel": saved(Image.new("L", (1, 1), 9)),
    "a very long one": saved(Image.new("L", (3_000, 1))),
    "black and white": saved(Image.new("1", (9, 9))),
}


def among_others(data: bytes) -> Build:
    """A folder of two classes with ``data`` as one of its pictures."""

    def build(root: Path) -> None:
        folder({"a": 9, "b": 9}, {"a/x.png": data})(root)
        write(root, data=with_data(source="folder", folder="own"))

    return build


CASES = [
    *(Case(name, among_others(data), "a/x.png|max_bad_fraction", BOTH) for name, (data, _) in BROKEN.items()),
    *(Case(name, among_others(data), "", BOTH) for name, data in READ.items()),
]
