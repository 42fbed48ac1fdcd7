"""Processes that train together, without Ray."""

import multiprocessing
import socket

import torch
import torch.multiprocessing

from pipeline.core.distributed import DistributedContext


def together(size, work, *arguments):
    """Call ``work(context, *arguments)`` in each of ``size`` processes, as the workers of a training."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.set_forkserver_preload(["pipeline.core.loop"])  # its server imports once
    torch.multiprocessing.start_processes(
        _one, (size, port, work, arguments), nprocs=size, start_method="forkserver"
    )


def _one(rank, size, port, work, arguments):
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=size)
    wrap = lambda module: torch.nn.parallel.DistributedDataParallel(module, forward_sync_buffers=False)
    work(DistributedContext(rank, size, torch.device("cpu"), wrap), *arguments)
    torch.distributed.destroy_process_group()
