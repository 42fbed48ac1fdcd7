"""Grids of images as PNG files."""

from contextlib import suppress
from pathlib import Path

import numpy as np

from pipeline.files import atomic_write

TARGET_PIXELS = 48  # small images are enlarged to about this side
GAP = 2  # pixels between images


def grid(images: np.ndarray, columns: int) -> np.ndarray:
    """uint8 images (N, C, H, W), grey or RGB, in rows of ``columns``: (H, W) or (H, W, 3).

    Small ones are enlarged by an integer factor.
    """
    count, channels, height, width = images.shape
    scale = max(1, TARGET_PIXELS // max(height, width))
    columns = max(1, min(columns, count))
    cell_h, cell_w = height * scale + GAP, width * scale + GAP
    sheet = np.full((-(-count // columns) * cell_h - GAP, columns * cell_w - GAP, channels), 128, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * cell_h, index % columns * cell_w
        tile = image.transpose(1, 2, 0).repeat(scale, 0).repeat(scale, 1)
        sheet[top : top + height * scale, left : left + width * scale] = tile
    return sheet[:, :, 0] if channels == 1 else sheet


def write_png(path: Path, images: np.ndarray, columns: int) -> None:
    """Write a grid of uint8 images (N, C, H, W), atomically; nothing where Pillow is not installed."""
    with suppress(ModuleNotFoundError), atomic_write(path) as temporary:
        from PIL import Image

        Image.fromarray(grid(images, columns)).save(temporary, format="PNG")


def to_bytes(images: np.ndarray) -> np.ndarray:
    """float images in [0, 1] -> uint8 images, rounded."""
    return np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8)
