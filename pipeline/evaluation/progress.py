"""Progress of an evaluation, as lines for a terminal or a log file."""

import math
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
SECONDS = 10.0


class Progress:
    """Prints at most one line every ``seconds``. It starts with ``name``, the model that is evaluated."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds, self.name = seconds, ""
        self._last = time.monotonic()

    def track(self, items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
        """Yield the ``total`` items and print how many are done."""
        for done, item in enumerate(items):
            if time.monotonic() - self._last >= self.seconds:
                self.print(f"{what}, {done:,} of {total:,}")
            yield item

    def print(self, text: str) -> None:
        """Print a line now."""
        print(f"{self.name}: {text}", flush=True)
        self._last = time.monotonic()


SILENT = Progress(math.inf)
