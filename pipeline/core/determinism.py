"""PyTorch's global settings for reproducible results."""

import torch


def make_deterministic(num_threads: int) -> None:
    """Use only deterministic kernels, and ``num_threads`` threads, in this process."""
    # use_deterministic_algorithms(True) does the same, but imports the compiler, which takes over a second.
    torch.set_deterministic_debug_mode("error")
    # No uninitialized memory is read here, and filling it takes time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_num_threads(num_threads)
