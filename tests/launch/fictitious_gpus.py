"""A training on GPUs that only Ray believes in: placed as on real ones, tensors stay on the CPU."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train.torch import TorchConfig

from pipeline.files import write_json
from pipeline.launch import worker

get_device = worker._device


@dataclass
class Gloo(TorchConfig):
    """Ray Train would choose NCCL for workers with a GPU."""

    backend: str | None = "gloo"


def train_worker(job: dict[str, Any]) -> dict[str, Any]:
    """The product's worker. Its device cuda:<n> becomes cpu:<n>, where PyTorch ignores the number."""

    def device(name: str) -> torch.device:
        chosen, context = get_device(name), ray.get_runtime_context()
        rank = ray.train.get_context().get_world_rank()
        write_json(
            Path(job["folder"]) / f"worker-{rank}.json",
            {
                "device": str(chosen),
                "gpus": ray.get_gpu_ids(),
                "visible": os.environ["CUDA_VISIBLE_DEVICES"],
                "resources": context.get_assigned_resources(),
                "process": os.getpid(),
            },
        )
        return torch.device("cpu", chosen.index)

    worker._device = device
    return worker.train_worker(job)
