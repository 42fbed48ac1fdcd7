"""How the examples of a step reach the device: read when they are due, kept on a GPU whole, or made ready one step ahead."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pipeline.data.dataset import Split
from pipeline.models.task import Batch

RESIDENT_SHARE = 0.25  # of a GPU's free memory, which the examples may fill
CHUNK = 4096

Places = Callable[[int], np.ndarray]  # which examples of the split, by the number of a step
Feed = Callable[[int], Batch]  # those examples on the device


def feed(split: Split, device: torch.device, places: Places) -> Feed:
    """The way that suits ``device``; all give the same batches.

    A CPU reads the shards: a thread that reads ahead would take a core from the training. A GPU keeps the whole split where it fits
    into a quarter of the free memory; else the next batch waits in pinned memory, from which it is copied while the GPU computes.
    """
    if device.type != "cuda":
        return partial(read, split, device, places)
    size = split.rows(np.arange(1))[0].nbytes * len(split)
    free, _ = torch.cuda.mem_get_info(device)
    return (Resident if size <= RESIDENT_SHARE * free else Ahead)(split, device, places)


def read(split: Split, device: torch.device, places: Places, step: int) -> Batch:
    """From the memory-mapped shards, now."""
    return Batch.of(*split.rows(places(step)), device)


class Resident:
    """All images, as the bytes that they are, and labels are copied to the device once."""

    def __init__(self, split: Split, device: torch.device, places: Places) -> None:
        chunks = [[torch.from_numpy(part).to(device) for part in chunk] for chunk in split.chunks(CHUNK)]
        self.images, self.labels = (torch.cat(parts) for parts in zip(*chunks, strict=True))
        self.device, self.places = device, places

    def __call__(self, step: int) -> Batch:
        places = torch.from_numpy(self.places(step)).to(self.device)
        return Batch.of(self.images[places], self.labels[places], self.device)


class Ahead:
    """A thread has the next step's examples ready, in pinned memory where the device is a GPU."""

    def __init__(self, split: Split, device: torch.device, places: Places) -> None:
        self.split, self.device, self.places = split, device, places
        self.thread = ThreadPoolExecutor(1, "feed")
        self.coming: tuple[int, Future[tuple[Tensor, Tensor]]] = (0, Future())

    def __call__(self, step: int) -> Batch:
        number, coming = self.coming
        ready = (coming if number == step else self.thread.submit(self._prepare, step)).result()
        self.coming = (step + 1, self.thread.submit(self._prepare, step + 1))
        return Batch.of(*ready, self.device)

    def _prepare(self, step: int) -> tuple[Tensor, Tensor]:
        images, labels = (torch.from_numpy(part) for part in self.split.rows(self.places(step)))
        return (images.pin_memory(), labels.pin_memory()) if self.device.type == "cuda" else (images, labels)
