"""Encoded pictures -> arrays, in order: by threads on one machine, by Ray Data where workers are asked for. The results are equal."""

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

CHUNK = 256  # pictures decoded at a time, at most,
CHUNK_BYTES = 16_000_000  # ... and their pixels
Decoded = tuple[np.ndarray, list[str]]  # images (n, C, H, W); why each is broken, '' where it is not


@dataclass(frozen=True)
class Decoder:
    """Decodes pictures that lie in a folder or zip to (channels, size, size)."""

    place: Path
    channels: int
    size: int

    def __call__(self, names: list[str]) -> Decoded:
        images = np.zeros((len(names), self.channels, self.size, self.size), np.uint8)
        reasons = [""] * len(names)
        for row, name in enumerate(names):
            try:
                images[row] = decode(read(self.place, name), self.channels, self.size)
            except (BrokenImage, ValueError) as error:
                reasons[row] = str(error)
        return images, reasons

    def decode_batch(self, batch: Any) -> Any:
        """The same for a batch of Ray Data."""
        if not self.place.exists():
            raise DarkroomError(
                "a worker does not see it",
                where=str(self.place),
                remedy="put the project on storage that every worker mounts",
            )
        images, reasons = self(list(batch["name"]))
        return {"image": images, "reason": np.array(reasons, dtype=object)}


def read(place: Path, name: str) -> bytes:
    """The bytes of a picture that lies in a folder or zip; any thread may ask. ``ValueError`` for damage and more than 256 MB."""
    if not place.is_dir():
        with _lock:
            archive = _zip(place, (place.stat().st_ino, place.stat().st_mtime_ns))
        return read_member(archive, name, _lock)
    if (place / name).stat().st_size > MAX_MEMBER_BYTES:
        raise ValueError(f"is larger than {MAX_MEMBER_BYTES:,} bytes")
    return (place / name).read_bytes()


Decode = Callable[[Decoder, list[str]], Iterator[Decoded]]


def chunk_size(channels: int, size: int) -> int:
    """How many pictures of (channels, size, size) are decoded at a time."""
    return max(1, min(CHUNK, CHUNK_BYTES // (channels * size**2)))


@contextmanager
def workers(environment: Environment) -> Iterator[Decode]:
    """A function that decodes pictures, given by name, in order: chunk after chunk, few of them in memory at any time."""
    if environment.workers == "auto" and not environment.ray_address:
        num_threads = os.cpu_count() or 1
        with ThreadPoolExecutor(num_threads) as pool:
            yield functools.partial(_decode_with_threads, pool, 2 * num_threads)
        return
    prepare()
    import ray

    ours = not ray.is_initialized()
    if ours:
        local: dict[str, Any] = {} if environment.ray_address else {"include_dashboard": False}
        if not environment.ray_address and environment.workers != "auto":
            local["num_cpus"] = environment.workers
        ray.init(
            address=environment.ray_address or "local",
            logging_level=logging.ERROR,
            log_to_driver=False,
            **local,
        )
    try:
        yield _decode_with_ray
    finally:
        if ours:
            ray.shutdown()


def _decode_with_threads(
    pool: ThreadPoolExecutor, ahead: int, decoder: Decoder, names: list[str]
) -> Iterator[Decoded]:
    pending: deque[Any] = deque()
    size = chunk_size(decoder.channels, decoder.size)
    for start in range(0, len(names), size):
        pending.append(pool.submit(decoder, names[start : start + size]))
        if len(pending) > ahead:
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
def _zip(place: Path, version: tuple[int, int]) -> zipfile.ZipFile:
    """The open archive, to be asked for under the lock: its list takes 0.6 GB for a million pictures, so threads share one."""
    return zipfile.ZipFile(place)
