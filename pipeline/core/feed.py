"""Feeds: how a step's examples get to the device. They are read on demand, kept on the GPU, or prefetched."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pipeline.core.dataset import Split
from pipeline.core.task import Batch

RESIDENT_FRACTION = 0.25  # of the GPU's free memory, for a split that is kept there
CHUNK = 4096  # images copied at a time

Indices = Callable[[int], np.ndarray]  # step -> indices of its examples in the split
Feed = Callable[[int], Batch]  # step -> its batch on the device


def make_feed(split: Split, device: torch.device, indices: Indices) -> Feed:
    """The fastest feed for ``device``. All feeds return the same batches.

    On a CPU batches are read on demand: a prefetching thread would take a core from the training. On a GPU
    the whole split is kept in GPU memory if it fits into a quarter of the free memory; otherwise the next
    batch is prefetched into pinned memory while the GPU computes.
    """
    if device.type != "cuda":
        return partial(read_batch, split, device, indices)
    num_bytes = split.rows(np.arange(1))[0].nbytes * len(split)
    free, _ = torch.cuda.mem_get_info(device)
    return (ResidentFeed if num_bytes <= RESIDENT_FRACTION * free else Prefetcher)(split, device, indices)


def read_batch(split: Split, device: torch.device, indices: Indices, step: int) -> Batch:
    """The batch of ``step``, read from the memory-mapped shards."""
    return Batch.of(*split.rows(indices(step)), device)


class ResidentFeed:
    """Copies all images (as uint8) and labels to the device once."""

    def __init__(self, split: Split, device: torch.device, indices: Indices) -> None:
        chunks = [[torch.from_numpy(part).to(device) for part in chunk] for chunk in split.chunks(CHUNK)]
        self.images, self.labels = (torch.cat(parts) for parts in zip(*chunks, strict=True))
        self.device, self.indices = device, indices

    def __call__(self, step: int) -> Batch:
        indices = torch.from_numpy(self.indices(step)).to(self.device)
        return Batch.of(self.images[indices], self.labels[indices], self.device)


class Prefetcher:
    """Reads the next step's examples in a thread, into pinned memory if the device is a GPU."""

    def __init__(self, split: Split, device: torch.device, indices: Indices) -> None:
        self.split, self.device, self.indices = split, device, indices
        self.thread = ThreadPoolExecutor(1, "feed")
        self.pending: tuple[int, Future[tuple[Tensor, Tensor]]] = (0, Future())  # step, its examples

    def __call__(self, step: int) -> Batch:
        pending_step, pending = self.pending
        examples = (pending if pending_step == step else self.thread.submit(self._read, step)).result()
        self.pending = (step + 1, self.thread.submit(self._read, step + 1))
        return Batch.of(*examples, self.device)

    def _read(self, step: int) -> tuple[Tensor, Tensor]:
        images, labels = (torch.from_numpy(part) for part in self.split.rows(self.indices(step)))
        return (images.pin_memory(), labels.pin_memory()) if self.device.type == "cuda" else (images, labels)
