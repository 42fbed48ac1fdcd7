"""PyTorch's global settings for reproducible results."""

import torch


def make_deterministic(num_threads: int) -> None:
    """Use only deterministic kernels, and ``num_threads`` threads, in this process."""
    # use_deterministic_algorithms(True) does the same, but imports the compiler, which takes over a second.
    torch.set_deterministic_debug_mode("error")
    # No uninitialized memory is read here, and filling it takes time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False  # it chooses the fastest kernels by measurements
    torch.set_num_threads(num_threads)


def allow_tf32(allowed: bool) -> None:
    """Whether GPUs may round the inputs of float32 matrix products and convolutions to 10 bits."""
    # After the newer `fp32_precision` is set, PyTorch raises errors where it still reads these flags.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
