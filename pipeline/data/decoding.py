"""Decode image files into arrays, in order: with threads on one machine, or with Ray Data on workers.

Both give the same result.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.folders import reader
from pipeline.data.images import decode
from pipeline.data.settings import Fit
from pipeline.data.threads import in_order
from pipeline.environment import Environment
from pipeline.errors import DarkroomError
from pipeline.limits import cpu_count
from pipeline.process import start_ray

CHUNK = 256  # maximum number of images decoded at a time
CHUNK_BYTES = 16_000_000  # maximum size of their pixels
MIN_FILES_FOR_RAY = 20_000  # threads decode fewer in the time that Ray takes to start
INVISIBLE = "is not visible to a worker"
Decoded = tuple[np.ndarray, list[str]]  # images (n, C, H, W); for each the reason why it is broken, or ''


@dataclass(frozen=True)
class Decoder:
    """Decodes image files of the folder or archive ``path`` to (channels, size, size).

    ``bits``: those of the values in images with 16 bits for each pixel.
    """

    path: Path
    channels: int
    size: int
    fit: Fit = "crop"
    bits: int = 16

    def __call__(self, names: list[str]) -> Decoded:
        images = np.zeros((len(names), self.channels, self.size, self.size), np.uint8)
        reasons = [""] * len(names)
        try:
            read = reader(self.path)
        except FileNotFoundError:
            return images, [INVISIBLE] * len(names)
        for row, name in enumerate(names):
            try:
                images[row] = decode(read(name), self.channels, self.size, self.fit, self.bits)
            except ValueError as error:
                reasons[row] = str(error)
            except FileNotFoundError:
                if self.path.exists():
                    raise
                reasons[row] = INVISIBLE
        return images, reasons

    def decode_batch(self, batch: Any) -> Any:
        """Decode a batch of Ray Data."""
        images, reasons = self(list(batch["name"]))
        return {"image": images, "reason": np.array(reasons, dtype=object)}


Decode = Callable[[Decoder, list[str]], Iterator[Decoded]]


def chunk_size(channels: int, size: int) -> int:
    """How many images of (channels, size, size) are decoded at a time."""
    return max(1, min(CHUNK, CHUNK_BYTES // (channels * size**2)))


@contextmanager
def workers(environment: Environment, num_files: int) -> Iterator[Decode]:
    """A function that decodes files in order, in chunks, with only a few chunks in memory at a time.

    Ray is only used for at least ``MIN_FILES_FOR_RAY`` files, and if the environment asks for workers.
    """
    if num_files < MIN_FILES_FOR_RAY or (environment.workers == "auto" and not environment.ray_address):
        yield _decode_with_threads
        return
    num_cpus = cpu_count() if environment.workers == "auto" else environment.workers
    started = start_ray(environment.ray_address, num_cpus)
    import ray

    try:
        yield _decode_with_ray
    finally:
        if started:
            ray.shutdown()


def _decode_with_threads(decoder: Decoder, names: list[str]) -> Iterator[Decoded]:
    size = chunk_size(decoder.channels, decoder.size)
    parts = [names[start : start + size] for start in range(0, len(names), size)]
    yield from in_order(decoder, parts, "images", f"decoding: chunks of {size}")


def _decode_with_ray(decoder: Decoder, names: list[str]) -> Iterator[Decoded]:
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    size = chunk_size(decoder.channels, decoder.size)
    rows = ray.data.from_items([{"name": name} for name in names], override_num_blocks=-(-len(names) // size))
    decoded = rows.map_batches(decoder.decode_batch, batch_size=size)
    remedy = "put the project on storage that all workers mount"
    try:
        for batch in decoded.iter_batches(batch_size=size):
            reasons = [str(reason) for reason in batch["reason"]]
            if INVISIBLE in reasons:
                raise DarkroomError(INVISIBLE, where=str(decoder.path), remedy=remedy)
            yield np.asarray(batch["image"]), reasons
    except ray.exceptions.RayError as error:
        what = f"Ray's workers cannot decode the images ({type(error).__name__})"
        remedy = "run it again; DARKROOM_DEBUG=1 shows the traceback"
        raise DarkroomError(what, where=str(decoder.path), remedy=remedy) from error
