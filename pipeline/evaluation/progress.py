"""Progress of an evaluation: plain lines, a few seconds apart, that read the same in a terminal and in a log file."""

import math
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
SECONDS = 10.0


class Progress:
    """Prints at most one line every ``seconds``, which starts with ``name``: the model that is being measured."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds, self.name = seconds, ""
        self._last = time.monotonic()

    def track(self, items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
        """Yield ``items``, of which there are ``total``, and print how many are done."""
        for done, item in enumerate(items):
            if time.monotonic() - self._last >= self.seconds:
                self.print(f"{what}, {done:,} of {total:,}")
            yield item

    def print(self, text: str) -> None:
        """Print a line now, whenever the last one was."""
        print(f"{self.name}: {text}", flush=True)
        self._last = time.monotonic()


SILENT = Progress(math.inf)
