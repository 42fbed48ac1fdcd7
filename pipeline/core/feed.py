"""Feeds: how a step's examples get to the device. They are read on demand, kept on the GPU, or prefetched."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from pipeline.core.batch import Batch, to_device
from pipeline.core.dataset import Split
from pipeline.core.fields import chunks

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
        return lambda step: split.batch(indices(step), device)
    num_bytes = sum(values.nbytes for values in split.rows(np.arange(1)).values()) * len(split)
    free, _ = torch.cuda.mem_get_info(device)
    return (ResidentFeed if num_bytes <= RESIDENT_FRACTION * free else Prefetcher)(split, device, indices)


class ResidentFeed:
    """Copies the split, as stored, to the device once."""

    def __init__(self, split: Split, device: torch.device, indices: Indices) -> None:
        self.values = {
            name: torch.as_tensor(np.empty(0, kind.dtype)).new_empty((len(split), *kind.shape), device=device)
            for name, kind in split.spec.fields.items()
        }
        for rows in chunks(len(split), CHUNK):
            for name, values in split.rows(rows).items():
                self.values[name][rows[0] : rows[-1] + 1] = torch.from_numpy(values)
        self.split, self.device, self.indices = split, device, indices

    def __call__(self, step: int) -> Batch:
        indices = to_device(torch.from_numpy(self.indices(step)), self.device)
        rows = {name: values[indices] for name, values in self.values.items()}
        return Batch.load(rows, self.split.spec, self.device)


class Prefetcher:
    """Reads the next step's examples in a thread, into pinned memory if the device is a GPU."""

    def __init__(self, split: Split, device: torch.device, indices: Indices) -> None:
        self.split, self.device, self.indices = split, device, indices
        self.thread = ThreadPoolExecutor(1, "feed")
        self.pending: tuple[int, Future[dict[str, Tensor]]] = (0, Future())  # step, its examples

    def __call__(self, step: int) -> Batch:
        pending_step, pending = self.pending
        examples = (pending if pending_step == step else self.thread.submit(self._read, step)).result()
        self.pending = (step + 1, self.thread.submit(self._read, step + 1))
        return Batch.load(examples, self.split.spec, self.device)

    def _read(self, step: int) -> dict[str, Tensor]:
        is_gpu, rows = self.device.type == "cuda", self.split.rows(self.indices(step))
        tensors = {name: torch.from_numpy(values) for name, values in rows.items()}
        return {name: values.pin_memory() if is_gpu else values for name, values in tensors.items()}
