"""Progress, as lines for a terminal or a log file."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import TypeVar

Item = TypeVar("Item")
SECONDS = 5.0
SHORT_SECONDS = 1.0
SILENT_SECONDS, POLL_SECONDS = 20.0, 1.0


class Progress:
    """Prints lines that start with ``name``, such as the model that is evaluated.

    Each part that takes ``SHORT_SECONDS`` or more is printed with its time when it ends, and a longer one
    every ``SECONDS`` before.
    """

    def __init__(self, name: str = "") -> None:
        self.start(name)

    def start(self, name: str) -> None:
        """Begin with a model."""
        self.name, self._last = name, time.monotonic()

    def track(self, items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
        """Yield the ``total`` items of the part ``what``, such as "classification: batches"."""
        began = time.monotonic()
        for done, item in enumerate(items):
            now = time.monotonic()
            if now - self._last >= SECONDS:
                self.print(f"{what}, {done:,} of {total:,}, {now - began:.0f} s")
            yield item
        seconds = time.monotonic() - began
        if seconds >= SHORT_SECONDS:
            self.print(f"{what.partition(':')[0]}, {seconds:.1f} s")

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        """In the block, which may track nothing, print ``what`` after ``SILENT_SECONDS`` without a line."""
        began, ended = time.monotonic(), Event()

        def watch() -> None:
            while not ended.wait(POLL_SECONDS):
                if (now := time.monotonic()) - self._last >= SILENT_SECONDS:
                    self.print(f"{what}, {now - began:.0f} s so far")

        Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    def print(self, text: str) -> None:
        """Print a line now."""
        print(": ".join(filter(None, (self.name, text))), flush=True)
        self._last = time.monotonic()


PROGRESS = Progress()  # of the evaluation
