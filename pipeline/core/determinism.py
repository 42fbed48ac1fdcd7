"""The switches of PyTorch on which the bits of a result depend."""

import torch


def make_deterministic(num_threads: int) -> None:
    """Use deterministic kernels only, and ``num_threads`` threads, in this process from now on."""
    torch.set_deterministic_debug_mode(
        "error"
    )  # use_deterministic_algorithms(True) also imports the compiler: over a second
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # we read none; filling takes time
    torch.set_num_threads(num_threads)
