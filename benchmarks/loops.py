"""A training without end that counts its steps: python loops.py plain|ray MODEL FOLDER WORKERS FILE.

``plain``: the same loop in processes of PyTorch's own with DistributedDataParallel, without Ray, MLflow and stage. ``ray``: as Darkroom
trains on the cluster of RAY_ADDRESS, without MLflow. FILE: the number of steps so far, as eight bytes.
"""

import socket
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path

SECONDS = 600


def count(path):
    """From here on, worker 0's steps are counted in ``path``."""
    import numpy as np

    from pipeline.training.step import Step

    steps, run = np.memmap(path, np.int64, "w+", shape=(1,)), Step.run

    def counted(self, *given):
        if self.world.rank == 0:
            steps[0] += 1
        return run(self, *given)

    Step.run = counted


def work(path, job):
    """A worker of Ray's."""
    from pipeline.training.worker import train_worker

    count(path)
    return train_worker(job)


def process(rank, size, port, name, folder, path):
    """A plain process, with the switches of a Ray worker."""
    import torch

    from pipeline.data.dataset import Dataset
    from pipeline.models import store
    from pipeline.models.task import DataSpec
    from pipeline.process import keep_freed_memory
    from pipeline.training.loop import Loop
    from pipeline.training.settings import read_training
    from pipeline.training.step import World

    torch.set_deterministic_debug_mode("error")
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.set_num_threads(1)
    keep_freed_memory()
    wrap = lambda module: module
    if size > 1:
        address = f"tcp://127.0.0.1:{port}"
        torch.distributed.init_process_group("gloo", address, timedelta(seconds=SECONDS), rank=rank, world_size=size)
        wrap = partial(torch.nn.parallel.DistributedDataParallel, forward_sync_buffers=False)
    settings, config = read_training(name, store.find(name).Config, folder / "params.yaml")
    data = Dataset.open(folder / "data/processed")
    task = store.build(name, config, DataSpec(data.channels, data.size, len(data.class_names)), settings.seed)
    count(path)
    Loop(task, data, settings, folder / "history" / name, World(rank, size, torch.device("cpu"), wrap)).run()


def plain(name, folder, size, path):
    """Train in ``size`` processes, which end with this one."""
    from torch.multiprocessing import start_processes

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = start_processes(process, (size, port, name, folder, path), size, join=False, daemon=True, start_method="spawn")
    while not context.join(1):
        pass


def ray(name, folder, size, path):
    """Train on ``size`` workers of Ray's."""
    from pipeline import environment

    environment.prepare()
    from pipeline.data.dataset import Dataset
    from pipeline.models import store
    from pipeline.training import fit, launch
    from pipeline.training.settings import read_training

    fit.train_worker = partial(work, path)
    training = launch.Training(name, *read_training(name, store.find(name).Config), Dataset.open(folder / "data/processed"))
    launch.train(training, environment.read(), folder / "model", folder / "history", [])


if __name__ == "__main__":
    how, name, folder, size, path = sys.argv[1:]
    {"plain": plain, "ray": ray}[how](name, Path(folder), int(size), path)
