"""The order of the training examples."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from pipeline.core.noise import generator
from pipeline.errors import BadInput

WINDOW_SHARDS = 4  # size of a shuffle window, in shards
BLOCKS_PER_SHARD = 64  # a block of a full shard has 4 MB


@dataclass(frozen=True, eq=False)
class Sampler:
    """The order of the examples: a pure function of (seed, epoch, shard sizes), for any number of workers.

    With up to ``WINDOW_SHARDS`` shards, an epoch is one permutation of all rows. With more, the data may not
    fit into memory: an epoch then permutes the blocks (``BLOCKS_PER_SHARD`` of each shard), groups them into
    windows of at most ``WINDOW_SHARDS`` shards (1 GB) and permutes the rows of each window, like the shuffle
    buffers of WebDataset, Petastorm and tf.data. So not every order is possible: the rows of a block are
    always in the same window, and the proportion of a class varies between windows. Blocks are much smaller
    than shards because preprocessing writes the examples sorted by class.

    An epoch has as many full batches as the split holds. The rows left over differ between epochs.
    With ``labels`` of the rows, all classes have the same share of an epoch: of a large class it has some of
    the rows, in each epoch others, and those of a small class several times. There are no windows then.
    """

    seed: int
    shard_sizes: tuple[int, ...]
    batch_size: int
    labels: np.ndarray | None = None

    def __post_init__(self) -> None:
        if (count := sum(self.shard_sizes)) < self.batch_size:
            what = f"batch_size {self.batch_size} is larger than the training split ({count} images)"
            raise BadInput(what, where="params.yaml", remedy=f"set batch_size to at most {count}")

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in the split."""
        return sum(self.shard_sizes) // self.batch_size

    def indices(self, step: int) -> np.ndarray:
        """Indices of the examples of the global batch at ``step`` (1, 2, ...), (batch_size,)."""
        epoch, batch = divmod(step - 1, self.steps_per_epoch)
        in_epoch = np.arange(batch * self.batch_size, (batch + 1) * self.batch_size)
        if self.labels is not None:
            return _balanced(self, epoch)[in_epoch]
        starts, windows, ends = _windows(self.seed, epoch, self.shard_sizes)
        numbers = np.searchsorted(ends, in_epoch, side="right")  # of the windows
        indices = []
        for number in np.unique(numbers).tolist():
            blocks = windows[number]
            sizes = starts[blocks + 1] - starts[blocks]
            stops = np.cumsum(sizes)
            order = _permutation(self.seed, epoch, number, int(stops[-1]))
            in_window = order[in_epoch[numbers == number] - ends[number] + stops[-1]]
            block = np.searchsorted(stops, in_window, side="right")
            indices.append(starts[blocks[block]] + in_window - (stops - sizes)[block])
        return np.concatenate(indices)


@lru_cache(maxsize=2)
def _windows(
    seed: int, epoch: int, shard_sizes: tuple[int, ...]
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """The block boundaries (rows), the blocks of each window, and the ends of the windows in the epoch."""
    firsts = np.cumsum([0, *shard_sizes])
    within = np.outer(shard_sizes, np.arange(BLOCKS_PER_SHARD)) // BLOCKS_PER_SHARD
    starts = np.append((firsts[:-1, None] + within).ravel(), firsts[-1])
    blocks = torch.randperm(len(starts) - 1, generator=generator(seed, epoch, "blocks")).numpy()
    num_windows = -(-len(shard_sizes) // WINDOW_SHARDS)
    windows = [np.sort(window) for window in np.array_split(blocks, num_windows)]
    return starts, windows, np.cumsum([(starts[window + 1] - starts[window]).sum() for window in windows])


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, window: int, count: int) -> np.ndarray:
    key = (seed, epoch, "order", window) if window else (seed, epoch, "order")
    return torch.randperm(count, generator=generator(*key), dtype=torch.int32).numpy()


@lru_cache(maxsize=2)
def _balanced(sampler: Sampler, epoch: int) -> np.ndarray:
    """The rows of an epoch in which all classes have the same share."""
    labels, random = np.asarray(sampler.labels), generator(sampler.seed, epoch, "balanced")
    permuted = lambda rows: rows[torch.randperm(len(rows), generator=random).numpy()]
    classes = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.unique_counts(labels).counts)[:-1])
    share = -(-len(labels) // len(classes))
    return permuted(np.concatenate([np.resize(permuted(rows), share) for rows in classes]))
