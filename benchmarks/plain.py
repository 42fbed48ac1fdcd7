"""A training by the same loop without Ray, MLflow and stage: plain processes, DistributedDataParallel between several."""

import socket
import time
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from surroundings import LIMIT_SECONDS
from torch.multiprocessing import start_processes

from pipeline.data.dataset import Dataset
from pipeline.models import store
from pipeline.models.task import DataSpec
from pipeline.training.loop import Loop
from pipeline.training.settings import read_training
from pipeline.training.step import World


def train(name: str, folder: Path, size: int) -> None:
    """Train in ``size`` processes; ``folder`` gets history/ and models/ as a stage leaves them. They end with this process."""
    deadline = time.monotonic() + LIMIT_SECONDS
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = start_processes(_process, (size, port, name, folder), size, join=False, daemon=True, start_method="spawn")
    while not context.join(1):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{name} in {size} plain processes")


def _process(rank: int, size: int, port: int, name: str, folder: Path) -> None:
    """One of them, with the switches of a Ray worker."""
    torch.set_deterministic_debug_mode("error")
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.set_num_threads(1)
    wrap = lambda module: module
    if size > 1:
        address = f"tcp://127.0.0.1:{port}"
        torch.distributed.init_process_group("gloo", address, timedelta(seconds=LIMIT_SECONDS), rank=rank, world_size=size)
        wrap = partial(torch.nn.parallel.DistributedDataParallel, forward_sync_buffers=False)
    settings, config = read_training(name, store.find(name).Config, folder / "params.yaml")
    data = Dataset.open(folder / "data/processed")
    task = store.build(name, config, DataSpec(data.channels, data.size, len(data.class_names)), settings.seed)
    trained = Loop(task, data, settings, folder / "history" / name, World(rank, size, torch.device("cpu"), wrap)).run()
    if rank == 0:
        store.write(trained, folder / "models" / name, {})
    if size > 1:
        torch.distributed.destroy_process_group()
