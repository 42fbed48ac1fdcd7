"""What the training code knows of its distribution over workers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

DDP_ARGUMENTS = {
    "forward_sync_buffers": False
}  # of DistributedDataParallel: buffers are functions of the step on each worker


@dataclass(frozen=True)
class DistributedContext:
    """The number of workers of a training, which of them this process is, and its device."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default=torch.device("cpu"))
    wrap: Callable[[nn.Module], nn.Module] = lambda module: (
        module
    )  # in DistributedDataParallel, if there are several
    microbatch: int = 0  # the most rows of a batch that are computed at a time; 0: all rows of this worker

    def rows(self, total: int) -> tuple[int, int]:
        """This worker's rows ``start:stop`` of a global batch of ``total``."""
        return total * self.rank // self.size, total * (self.rank + 1) // self.size

    def broadcast(self, value: Any) -> Any:
        """Worker 0's ``value``, for all workers."""
        box = [value]
        if self.size > 1:
            torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over all workers."""
        if self.size > 1:
            torch.distributed.all_reduce(values)
        return values
