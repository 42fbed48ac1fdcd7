"""Progress of an evaluation, as lines for a terminal or a log file."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
SECONDS = 10.0


class Progress:
    """Prints at most one line every ``SECONDS``. It starts with ``name``, the model that is evaluated."""

    def __init__(self) -> None:
        self.start("")

    def start(self, name: str) -> None:
        """Begin with a model."""
        self.name, self._last = name, time.monotonic()

    def track(self, items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
        """Yield the ``total`` items and print how many are done."""
        for done, item in enumerate(items):
            if time.monotonic() - self._last >= SECONDS:
                self.print(f"{what}, {done:,} of {total:,}")
            yield item

    def print(self, text: str) -> None:
        """Print a line now."""
        print(f"{self.name}: {text}", flush=True)
        self._last = time.monotonic()


PROGRESS = Progress()  # of this process
