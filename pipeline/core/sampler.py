"""Which examples each step sees."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from pipeline.core.noise import generator
from pipeline.errors import BadInput

WINDOW = 4  # shards whose rows are mixed
BLOCKS = 64  # that a shard is taken in: 4 MB each


@dataclass(frozen=True)
class Sampler:
    """The order of the examples, a pure function of (seed, epoch, sizes of the shards), whatever the number of workers.

    Up to ``WINDOW`` shards an epoch is one permutation of all rows. Of more shards, whose data may exceed the memory, an epoch
    permutes the blocks (a shard has ``BLOCKS`` of them), takes them in windows of the size of ``WINDOW`` shards at most (1 GB) and permutes
    the rows of each window, like the shuffle buffers of WebDataset, Petastorm and tf.data. So not every order is possible: the rows
    of a block are always in the same window, and the share of a class varies between windows. Blocks are much smaller than shards because
    preprocessing keeps files in the order of their classes.

    An epoch has as many whole batches as the split holds. The rows left over differ between epochs.
    """

    seed: int
    shard_sizes: tuple[int, ...]
    batch_size: int

    def __post_init__(self) -> None:
        if (count := sum(self.shard_sizes)) < self.batch_size:
            raise BadInput(
                f"batch_size {self.batch_size} is larger than the training split ({count} images)",
                where="params.yaml",
                remedy=f"set batch_size to at most {count}",
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the split."""
        return sum(self.shard_sizes) // self.batch_size

    def indices(self, step: int) -> np.ndarray:
        """The examples of the global batch at ``step`` (from 1), (batch_size,)."""
        epoch, position = divmod(step - 1, self.steps_per_epoch)
        starts, windows, ends = _windows(self.seed, epoch, self.shard_sizes)
        wanted = np.arange(position * self.batch_size, (position + 1) * self.batch_size)
        numbers = np.searchsorted(ends, wanted, side="right")
        found = []
        for number in np.unique(numbers).tolist():
            blocks = windows[number]
            sizes = starts[blocks + 1] - starts[blocks]
            stops = np.cumsum(sizes)
            positions = _permutation(self.seed, epoch, number, int(stops[-1]))[
                wanted[numbers == number] - ends[number] + stops[-1]
            ]
            which = np.searchsorted(stops, positions, side="right")
            found.append(starts[blocks[which]] + positions - (stops - sizes)[which])
        return np.concatenate(found)


@lru_cache(maxsize=2)
def _windows(
    seed: int, epoch: int, shard_sizes: tuple[int, ...]
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Where each block starts in the data (and the last ends), the blocks of each window, and where each window ends in the epoch."""
    firsts = np.cumsum([0, *shard_sizes])
    within = np.outer(shard_sizes, np.arange(BLOCKS)) // BLOCKS
    starts = np.append((firsts[:-1, None] + within).ravel(), firsts[-1])
    blocks = torch.randperm(len(starts) - 1, generator=generator(seed, epoch, "blocks")).numpy()
    windows = [np.sort(window) for window in np.array_split(blocks, -(-len(shard_sizes) // WINDOW))]
    return starts, windows, np.cumsum([(starts[window + 1] - starts[window]).sum() for window in windows])


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, window: int, count: int) -> np.ndarray:
    key = (seed, epoch, "order", window) if window else (seed, epoch, "order")
    return torch.randperm(count, generator=generator(*key), dtype=torch.int32).numpy()
