"""How long the threads of PyTorch wait for each other while other processes use the cores, too."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

from pipeline import environment, limits

POLL_SECONDS = 2.0
TEAM_VALUES = 1_000_000  # PyTorch computes the sines of so many values with all its threads


@contextmanager
def short_waits_if_busy() -> Iterator[None]:
    """In the block, let idle OpenMP threads sleep early while the machine is busy.

    A thread that waits for others first spins, and so may take the core that these need. GNU OpenMP spins
    much shorter while the process has more OpenMP threads than there are cores (its manual: GOMP_SPINCOUNT).
    So a second team of threads that only waits is held as long as the machine is busy. Results do not change.
    Nothing is done if GOMP_SPINCOUNT or OMP_WAIT_POLICY is set.
    """
    import torch

    num_threads = torch.get_num_threads()
    if num_threads == 1 or environment.decides_waiting():
        yield
        return
    ended = Event()
    watch = Thread(target=_watch, args=(num_threads, ended), daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()


def _watch(num_threads: int, ended: Event) -> None:
    while not ended.wait(POLL_SECONDS):
        if limits.is_busy(num_threads):
            team = Thread(target=_hold_team, args=(num_threads, ended), daemon=True)  # its team ends with it
            team.start()
            team.join()


def _hold_team(num_threads: int, ended: Event) -> None:
    import torch

    torch.zeros(TEAM_VALUES).sin()
    while not ended.wait(POLL_SECONDS) and limits.is_busy(num_threads):
        pass
