"""Work on many items with a thread for each core. Decoders and NumPy release Python's lock."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from pipeline.limits import cpu_count
from pipeline.progress import Progress

Item = TypeVar("Item")
Done = TypeVar("Done")


def in_order(work: Callable[[Item], Done], items: Sequence[Item], name: str, what: str) -> Iterator[Done]:
    """The results of ``work``, in the order of ``items``.

    Only a few results for each thread are in memory, so it does not grow with the number of items. The
    progress is printed: ``name`` is what is worked on, ``what`` the part, such as "decoding: clips".
    """
    num_threads = cpu_count()

    def results() -> Iterator[Done]:
        pending: deque[Future[Done]] = deque()
        with ThreadPoolExecutor(num_threads) as pool:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > 2 * num_threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    yield from Progress(name).track(results(), what, len(items))
