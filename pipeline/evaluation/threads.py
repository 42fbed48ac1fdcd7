"""Computations on large sets of vectors: block by block, so that memory stays bounded, on several threads."""

from collections.abc import Callable, Iterable, Iterator

import torch

from pipeline.progress import PROGRESS
from pipeline.threads import Item, Result, in_order

BLOCK_VALUES = 2_000_000  # 16 MB as float64


def blocks(rows: int, columns: int) -> list[slice]:
    """Consecutive slices of ``rows``: a matrix of one slice and ``columns`` has about ``BLOCK_VALUES``."""
    size = max(1, BLOCK_VALUES // columns)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], what: str, total: int
) -> Iterator[Result]:
    """Yield ``function(item)`` for each of the ``total`` items, in order, and print the progress of ``what``.

    As many threads as PyTorch uses call ``function``, a few items ahead. So the results do not depend on
    their number.
    """
    return PROGRESS.track(in_order(function, items, torch.get_num_threads()), what, total)
