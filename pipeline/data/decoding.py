"""Decode image files into arrays, in order: with threads on one machine, or with Ray Data on workers.

Both give the same result.
"""

import functools
import logging
import os
import threading
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.archives import MAX_MEMBER_BYTES, read_member
from pipeline.data.images import BrokenImage, decode
from pipeline.environment import Environment, prepare
from pipeline.errors import DarkroomError
from pipeline.process import worker_python

CHUNK = 256  # maximum number of images decoded at a time
CHUNK_BYTES = 16_000_000  # maximum size of their pixels
Decoded = tuple[np.ndarray, list[str]]  # images (n, C, H, W); for each the reason why it is broken, or ''


@dataclass(frozen=True)
class Decoder:
    """Decodes image files of the folder or zip ``path`` to (channels, size, size)."""

    path: Path
    channels: int
    size: int

    def __call__(self, names: list[str]) -> Decoded:
        images = np.zeros((len(names), self.channels, self.size, self.size), np.uint8)
        reasons = [""] * len(names)
        for row, name in enumerate(names):
            try:
                images[row] = decode(read_file(self.path, name), self.channels, self.size)
            except (BrokenImage, ValueError) as error:
                reasons[row] = str(error)
        return images, reasons

    def decode_batch(self, batch: Any) -> Any:
        """Decode a batch of Ray Data."""
        if not self.path.exists():
            remedy = "put the project on storage that all workers mount"
            raise DarkroomError("is not visible to a worker", where=str(self.path), remedy=remedy)
        images, reasons = self(list(batch["name"]))
        return {"image": images, "reason": np.array(reasons, dtype=object)}


def read_file(path: Path, name: str) -> bytes:
    """The bytes of a file in the folder or zip ``path``. Thread-safe.

    Raises ``ValueError`` for damage and for more than 256 MB.
    """
    if not path.is_dir():
        with _lock:
            archive = _open_zip(path, (path.stat().st_ino, path.stat().st_mtime_ns))
        return read_member(archive, name, _lock)
    if (path / name).stat().st_size > MAX_MEMBER_BYTES:
        raise ValueError(f"is larger than {MAX_MEMBER_BYTES:,} bytes")
    return (path / name).read_bytes()


Decode = Callable[[Decoder, list[str]], Iterator[Decoded]]


def chunk_size(channels: int, size: int) -> int:
    """How many images of (channels, size, size) are decoded at a time."""
    return max(1, min(CHUNK, CHUNK_BYTES // (channels * size**2)))


@contextmanager
def workers(environment: Environment) -> Iterator[Decode]:
    """A function that decodes files in order, in chunks, with only a few chunks in memory at a time."""
    if environment.workers == "auto" and not environment.ray_address:
        num_threads = os.cpu_count() or 1
        with ThreadPoolExecutor(num_threads) as pool:
            yield functools.partial(_decode_with_threads, pool, 2 * num_threads)
        return
    prepare()
    import ray

    start_ray = not ray.is_initialized()
    if start_ray:
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if not environment.ray_address:
            options |= {"include_dashboard": False, "runtime_env": worker_python()}
            if environment.workers != "auto":
                options["num_cpus"] = environment.workers
        ray.init(address=environment.ray_address or "local", **options)
    try:
        yield _decode_with_ray
    finally:
        if start_ray:
            ray.shutdown()


def _decode_with_threads(
    pool: ThreadPoolExecutor, max_pending: int, decoder: Decoder, names: list[str]
) -> Iterator[Decoded]:
    pending: deque[Any] = deque()
    size = chunk_size(decoder.channels, decoder.size)
    for start in range(0, len(names), size):
        pending.append(pool.submit(decoder, names[start : start + size]))
        if len(pending) > max_pending:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _decode_with_ray(decoder: Decoder, names: list[str]) -> Iterator[Decoded]:
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    size = chunk_size(decoder.channels, decoder.size)
    rows = ray.data.from_items([{"name": name} for name in names], override_num_blocks=-(-len(names) // size))
    for batch in rows.map_batches(decoder.decode_batch, batch_size=size).iter_batches(batch_size=size):
        yield np.asarray(batch["image"]), [str(reason) for reason in batch["reason"]]


_lock = threading.Lock()


@functools.lru_cache(maxsize=1)
def _open_zip(path: Path, version: tuple[int, int]) -> zipfile.ZipFile:
    """The open archive; call it with the lock held.

    Threads share one, as its index takes 0.6 GB for a million files.
    """
    return zipfile.ZipFile(path)
