"""The training loop's view of data-parallel training."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

# Buffers depend only on the step, so they are equal on all workers without synchronisation.
DDP_ARGUMENTS = {"forward_sync_buffers": False}


@dataclass(frozen=True)
class DistributedContext:
    """This worker's rank, the number of workers, and the device."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default=torch.device("cpu"))
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module  # DistributedDataParallel, or nothing
    microbatch: int = 0  # maximum rows computed at a time (gradient accumulation); 0: all rows of this worker

    def rows(self, total: int) -> tuple[int, int]:
        """This worker's rows ``start:stop`` of a global batch of ``total`` rows."""
        return total * self.rank // self.size, total * (self.rank + 1) // self.size

    def broadcast(self, value: Any) -> Any:
        """The ``value`` of rank 0, on all workers."""
        values = [value]
        if self.size > 1:
            torch.distributed.broadcast_object_list(values, src=0)
        return values[0]

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over all workers, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(values)
        return values
