"""Computations on large sets of vectors: block by block, so that memory stays bounded, on several threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from pipeline.progress import PROGRESS

Item = TypeVar("Item")
Result = TypeVar("Result")
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
    num_threads = torch.get_num_threads()

    def results() -> Iterator[Result]:
        pending: deque[Future[Result]] = deque()
        with ThreadPoolExecutor(num_threads) as pool:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > 2 * num_threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    return PROGRESS.track(results(), what, total)
