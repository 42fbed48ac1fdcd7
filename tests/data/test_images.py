"""Image files of many kinds, valid and broken."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.images import BrokenImage, decode, resize
from tests.bad_input.pictures import BROKEN, saved

from .conftest import encoded

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_pixels_of_a_square_of_the_right_size_are_untouched(kind):
    data = encoded(1, (9, 9), kind)
    assert np.array_equal(decode(data, 3, 9), np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1))


def test_the_central_square_is_taken():
    wide = np.zeros((4, 10, 3), np.uint8)
    wide[:, 3:7] = 200
    assert (decode(saved(Image.fromarray(wide)), 3, 4) == 200).all()
    assert (decode(saved(Image.fromarray(wide.transpose(1, 0, 2))), 3, 4) == 200).all()


WIDE = np.zeros((20, 40), np.uint8)
WIDE[:, :10], WIDE[:, 10:20], WIDE[:, 20:30], WIDE[:, 30:] = 100, 150, 200, 250  # four bars side by side


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("fit", "row"),
    [
        ("crop", [150] * 4 + [200] * 4),
        ("stretch", [100] * 2 + [150] * 2 + [200] * 2 + [250] * 2),
        ("pad", [100] * 2 + [150] * 2 + [200] * 2 + [250] * 2),
    ],
)
def test_an_image_that_is_not_square_is_cropped_padded_or_stretched(fit, row, turned):
    pixels = decode(saved(Image.fromarray(WIDE.T if turned else WIDE)), 1, 8, fit)[0]
    pixels = pixels.T if turned else pixels
    middle = pixels[2:6] if fit == "pad" else pixels
    assert np.abs(middle.astype(int) - row).max() <= 12
    if fit == "pad":
        assert (pixels[:2] == 0).all() and (pixels[6:] == 0).all()


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [1, 7, 16, 50])
def test_every_fit_gives_a_square_also_for_a_very_thin_image_and_leaves_a_square_as_it_is(fit, size):
    for shape in ((1, 1), (300, 1), (1, 300), (13, 12)):
        assert resize(Image.new("RGB", shape), size, fit).size == (size, size)
    square = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size), dtype=np.uint8))
    assert np.array_equal(resize(square, size, fit), square)


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [5, 90])
def test_the_labels_of_a_label_map_are_never_mixed(mode, fit, size):
    labels = (
        np.random.default_rng(1).choice([3, 200], (21, 34)).astype(np.uint16 if mode == "I;16" else np.uint8)
    )
    image = Image.fromarray(labels) if mode != "P" else Image.frombytes("P", (34, 21), labels.tobytes())
    found = set(np.unique(resize(image, size, fit, "label_map")).tolist())
    assert found == ({3, 200, 255} if fit == "pad" else {3, 200})  # bars are ignored
    if mode == "L":  # the same as an image has mixed values
        assert not set(np.unique(resize(image, size, fit)).tolist()) <= found


def test_images_are_made_smaller_without_aliasing():
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    assert abs(decode(saved(Image.fromarray(stripes)), 1, 16).astype(int) - 127)[:, 2:-2, 2:-2].max() <= 2


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (4, 4), 77), (77, 77, 77)),
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (10, 20, 30, 255)), (10, 20, 30)),
        (Image.new("RGBA", (4, 4), (10, 20, 30, 0)), (255, 255, 255)),
        (Image.new("LA", (4, 4), (40, 0)), (255, 255, 255)),
        (Image.new("I;16", (4, 4), 65535), (255, 255, 255)),
        (Image.new("I;16", (4, 4), 257 * 100), (100, 100, 100)),
        (Image.new("I;16", (4, 4), 200), (1, 1, 1)),
        (Image.new("RGB", (4, 4), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE), (10, 200, 30)),
    ],
)
def test_every_mode_of_png_becomes_rgb_with_transparency_on_white(image, expected):
    assert decode(saved(image), 3, 4)[:, 0, 0].tolist() == list(expected)


def test_a_transparent_palette_colour_becomes_white():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([9, 9, 9])
    assert decode(saved(image, transparency=0), 3, 4)[:, 0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize(("bits", "top"), [(8, 255), (12, 4095), (16, 65535)])
def test_values_of_fewer_bits_in_a_wide_image_are_scaled_by_their_range(bits, top):
    values = Image.fromarray(np.array([[0, top // 2], [top // 4, top]], np.uint16))
    found = decode(saved(values), 1, 2, bits=bits)[0].ravel().astype(int)
    assert np.abs(found - [0, 127, 64, 255]).max() <= 1
    if bits < 16:
        with pytest.raises(BrokenImage, match=f"more than {bits} bits: set data.bit_depth to"):
            decode(saved(Image.new("I;16", (2, 2), top + 1)), 1, 2, bits=bits)


def test_cmyk_becomes_rgb():
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(decode(saved(red, "JPEG", quality=95), 3, 8)[:, 4, 4].astype(int) - [255, 0, 0]).max() <= 4


def test_the_cameras_orientation_is_applied():
    image = Image.fromarray(np.array([[0, 0], [255, 255]], np.uint8).repeat(8, 0).repeat(8, 1))
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    pixels = decode(saved(image, "JPEG", exif=exif), 1, 16)[0]
    assert pixels[2].mean() > 250 and pixels[-3].mean() < 5


def test_a_grey_picture_of_one_pixel_can_be_enlarged():
    assert (decode(saved(Image.new("L", (1, 1), 9)), 1, 8) == 9).all()


@pytest.mark.parametrize(("data", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_image_is_refused_with_its_reason(data, reason):
    with pytest.raises(BrokenImage, match=reason):
        decode(data, 3, 8)


def test_an_image_at_the_pixel_limit_is_read_and_a_larger_one_is_not(monkeypatch):
    monkeypatch.setattr("pipeline.data.images.MAX_PIXELS", 64)
    assert decode(encoded(1, (8, 8)), 3, 8).shape == (3, 8, 8)
    with pytest.raises(BrokenImage, match=r"more than 64 pixels \(13 x 5\)"):
        decode(encoded(1, (13, 5)), 3, 8)


MEMORY = """
import io, resource, sys
from PIL import Image
from pipeline.data.images import decode
data = open(sys.argv[1], "rb").read()
decode(open(sys.argv[2], "rb").read(), 3, 64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert decode(data, 3, 64)[:, 32, 32].tolist() == [200, 100, 50]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize(("size", "options"), [((6000, 4000), {}), ((6000, 4000), {"progressive": True}),
                                               ((16000, 1200), {})])  # fmt: skip
def test_a_photograph_of_24_megapixels_takes_little_memory(tmp_path, size, options):
    large, small = tmp_path / "large.jpg", tmp_path / "small.jpg"
    Image.new("RGB", size, (200, 100, 50)).save(large, quality=95, **options)
    Image.new("RGB", (64, 64)).save(small)
    command = [sys.executable, "-c", MEMORY, str(large), str(small)]
    used = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert int(used) * 1024 < 200_000_000


def test_the_reduced_scale_of_a_large_photograph_gives_nearly_the_same_pixels(monkeypatch):
    coarse = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    photograph = Image.fromarray(coarse).resize((1200, 900), Image.Resampling.BICUBIC)
    data = saved(photograph, "JPEG", quality=95)
    full = decode(data, 3, 32).astype(int)
    monkeypatch.setattr("pipeline.data.images.MAX_FULL_PIXELS", 1000)
    reduced = decode(data, 3, 32).astype(int)
    assert 0 < np.abs(full - reduced).max() <= 12 and np.abs(full - reduced).mean() <= 2


def test_a_jpeg_truncated_anywhere_is_refused():
    data = encoded(3, (24, 24), "JPEG")
    for keep in range(0, len(data) - 2, 37):
        with pytest.raises(BrokenImage):
            decode(data[:keep], 3, 8)
