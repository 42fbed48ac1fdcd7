"""An endless training that counts its steps. Usage: python loops.py plain|ray MODEL FOLDER WORKERS FILE

``plain`` runs the loop in processes started by torch.multiprocessing, with DistributedDataParallel but
without Ray, MLflow and stages. ``ray`` trains as Darkroom does on the cluster RAY_ADDRESS, without MLflow.
FILE gets the number of steps so far, as eight bytes.
"""

import socket
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path

SECONDS = 600


def count(path):
    """Count the steps of rank 0 in ``path``."""
    import numpy as np

    from pipeline.core.step import Step

    steps, run = np.memmap(path, np.int64, "w+", shape=(1,)), Step.run

    def counted(self, *given):
        if self.context.rank == 0:
            steps[0] += 1
        return run(self, *given)

    Step.run = counted


def work(path, job):
    """The Ray worker."""
    from pipeline.launch.worker import train_worker

    count(path)
    return train_worker(job)


def process(rank, size, port, name, folder, path):
    """A plain process, with the settings of a Ray worker."""
    import torch

    from pipeline.core import model_files
    from pipeline.core.dataset import Dataset
    from pipeline.core.determinism import make_deterministic
    from pipeline.core.distributed import DistributedContext
    from pipeline.core.loop import Loop
    from pipeline.core.settings import read_training
    from pipeline.process import keep_freed_memory

    make_deterministic(1)
    keep_freed_memory()
    wrap = lambda module: module
    if size > 1:
        address = f"tcp://127.0.0.1:{port}"
        torch.distributed.init_process_group(
            "gloo", address, timedelta(seconds=SECONDS), rank=rank, world_size=size
        )
        wrap = partial(torch.nn.parallel.DistributedDataParallel, forward_sync_buffers=False)
    settings, config = read_training(name, model_files.find(name).Config, folder / "params.yaml")
    data = Dataset.open(folder / "data/processed/images")
    task = model_files.build(name, config, data.spec, settings.seed)
    count(path)
    Loop(
        task,
        data,
        settings,
        folder / "history" / name,
        DistributedContext(rank, size, torch.device("cpu"), wrap),
    ).run()


def plain(name, folder, size, path):
    """Train in ``size`` processes, which end with this process."""
    from torch.multiprocessing import start_processes

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = start_processes(
        process, (size, port, name, folder, path), size, join=False, daemon=True, start_method="spawn"
    )
    while not context.join(1):
        pass


def ray(name, folder, size, path):
    """Train on ``size`` Ray workers."""
    from pipeline import environment

    environment.prepare()
    from pipeline.core import model_files
    from pipeline.core.dataset import Dataset
    from pipeline.core.settings import read_training
    from pipeline.launch import ray_train
    from pipeline.launch.training import Training, train

    ray_train.train_worker = partial(work, path)
    training = Training(
        name,
        *read_training(name, model_files.find(name).Config),
        Dataset.open(folder / "data/processed/images"),
    )
    train(training, environment.read(), folder / "model", folder / "history", [])


if __name__ == "__main__":
    how, name, folder, size, path = sys.argv[1:]
    {"plain": plain, "ray": ray}[how](name, Path(folder), int(size), path)
