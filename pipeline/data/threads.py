"""Work on many items with a thread for each core."""

from collections.abc import Callable, Iterator, Sequence

from pipeline import threads
from pipeline.limits import cpu_count
from pipeline.progress import Progress
from pipeline.threads import Item, Result


def in_order(
    function: Callable[[Item], Result], items: Sequence[Item], name: str, what: str
) -> Iterator[Result]:
    """Yield ``function(item)`` for each item, in order, and print the progress.

    ``name`` is what is worked on, ``what`` the part, such as "decoding: clips".
    """
    yield from Progress(name).track(threads.in_order(function, items, cpu_count()), what, len(items))
