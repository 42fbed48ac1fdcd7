"""How the examples of a step reach the device: read when needed, kept on a GPU, or prefetched."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pipeline.core.dataset import Split
from pipeline.core.task import Batch

RESIDENT_SHARE = 0.25  # of a GPU's free memory, which the examples may fill
CHUNK = 4096

Indices = Callable[[int], np.ndarray]  # the rows of the split that a step uses, by its number
Feed = Callable[[int], Batch]  # those rows as a batch on the device


def feed(split: Split, device: torch.device, indices: Indices) -> Feed:
    """The way that suits ``device``; all give the same batches.

    A CPU reads the shards: a thread that reads ahead would take a core from the training. A GPU keeps the whole split where it fits
    into a quarter of the free memory; else the next batch waits in pinned memory, from which it is copied while the GPU computes.
    """
    if device.type != "cuda":
        return partial(read, split, device, indices)
    size = split.rows(np.arange(1))[0].nbytes * len(split)
    free, _ = torch.cuda.mem_get_info(device)
    return (Resident if size <= RESIDENT_SHARE * free else Ahead)(split, device, indices)


def read(split: Split, device: torch.device, indices: Indices, step: int) -> Batch:
    """From the memory-mapped shards, now."""
    return Batch.of(*split.rows(indices(step)), device)


class Resident:
    """All images, as the bytes that they are, and labels are copied to the device once."""

    def __init__(self, split: Split, device: torch.device, indices: Indices) -> None:
        chunks = [[torch.from_numpy(part).to(device) for part in chunk] for chunk in split.chunks(CHUNK)]
        self.images, self.labels = (torch.cat(parts) for parts in zip(*chunks, strict=True))
        self.device, self.indices = device, indices

    def __call__(self, step: int) -> Batch:
        indices = torch.from_numpy(self.indices(step)).to(self.device)
        return Batch.of(self.images[indices], self.labels[indices], self.device)


class Ahead:
    """A thread has the next step's examples ready, in pinned memory where the device is a GPU."""

    def __init__(self, split: Split, device: torch.device, indices: Indices) -> None:
        self.split, self.device, self.indices = split, device, indices
        self.thread = ThreadPoolExecutor(1, "feed")
        self.coming: tuple[int, Future[tuple[Tensor, Tensor]]] = (0, Future())

    def __call__(self, step: int) -> Batch:
        number, coming = self.coming
        ready = (coming if number == step else self.thread.submit(self._prepare, step)).result()
        self.coming = (step + 1, self.thread.submit(self._prepare, step + 1))
        return Batch.of(*ready, self.device)

    def _prepare(self, step: int) -> tuple[Tensor, Tensor]:
        images, labels = (torch.from_numpy(part) for part in self.split.rows(self.indices(step)))
        return (images.pin_memory(), labels.pin_memory()) if self.device.type == "cuda" else (images, labels)
