"""Random numbers as a pure function of (seed, step, phase, name).

The rows of the *global* batch are drawn in blocks of 32, each from its own generator, and a worker draws the
blocks that contain its rows. So the noise does not depend on the number of workers, and a resumed training
needs only its step. It is drawn on the CPU, so it does not depend on the device. The pipeline does not use
PyTorch's global generator; layers that PyTorch initialises from it are built inside :func:`initialisation`.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pipeline.core.batch import to_device

BLOCK = 32  # rows that are drawn from one generator


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator whose state depends only on ``key``."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@contextmanager
def initialisation(seed: int, name: str = "initialisation") -> Iterator[None]:
    """Seed PyTorch's global CPU generator with (seed, name) inside the block, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.set_state(generator(seed, name).get_state())
        yield


@dataclass(frozen=True)
class Noise:
    """Random numbers of one phase of one step, for the rows ``start:stop`` of a batch of ``total`` rows."""

    seed: int
    step: int
    phase: str
    start: int
    stop: int
    total: int
    device: torch.device = field(default=torch.device("cpu"))

    @classmethod
    def whole(
        cls, seed: int, count: int, phase: str = "", step: int = 0, device: torch.device | str = "cpu"
    ) -> "Noise":
        """Noise for a whole batch of ``count`` examples, as in evaluation and generation."""
        return cls(seed, step, phase, 0, count, count, torch.device(device))

    def at(self, phase: str) -> "Noise":
        """The noise of another phase, for the same rows."""
        return replace(self, phase=phase)

    def rows(self, start: int, stop: int) -> "Noise":
        """The noise of the rows ``start:stop`` of these rows."""
        return replace(self, start=self.start + start, stop=self.start + stop)

    def normal(self, name: str, *shape: int) -> Tensor:
        """Standard normal numbers, (rows, *shape)."""
        return self._draw(name, lambda generator: torch.randn(BLOCK, *shape, generator=generator))

    def uniform(self, name: str, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), (rows, *shape)."""
        return self._draw(name, lambda generator: torch.rand(BLOCK, *shape, generator=generator))

    def integers(self, name: str, high: int, *shape: int) -> Tensor:
        """Uniform integers in [0, high), int64, (rows, *shape)."""
        return self._draw(name, lambda generator: torch.randint(high, (BLOCK, *shape), generator=generator))

    def warm_up(self, steps: int) -> Tensor:
        """min(1, step / ``steps``), (rows,): not a random number, but also a function of the step alone."""
        share = min(1.0, self.step / steps)  # drawn like the others, so that torch.compile compiles only once
        return self._draw("warm_up", lambda _: torch.full((BLOCK,), share))

    def step_tensor(self) -> Tensor:
        """The step, a scalar, int64; drawn like the others for the same reason as :meth:`warm_up`."""
        return self._draw("step", lambda _: torch.full((BLOCK,), self.step))[0]

    def _draw(self, name: str, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        """Draw the blocks that contain these rows, and return the rows."""
        first, last = self.start // BLOCK, max(self.start, self.stop - 1) // BLOCK
        key = (self.seed, self.step, self.phase, name)
        blocks = torch.cat([draw(generator(*key, block)) for block in range(first, last + 1)])
        return to_device(blocks[self.start - first * BLOCK : self.stop - first * BLOCK], self.device)
