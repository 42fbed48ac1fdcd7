"""Ray Train without Darkroom: train a linear layer on two workers. Usage: python bare.py FILE

FILE gets the time of the first step, in the format of marks.py. Ray's settings are Darkroom's; with Ray's
defaults it takes longer.
"""

import logging
import sys
import time

from pipeline import environment

environment.prepare()


def work(job):
    """A worker."""
    import ray.train.torch
    import torch

    model = ray.train.torch.prepare_model(torch.nn.Linear(2, 2))
    model(torch.ones(1, 2)).sum().backward()
    with open(job["file"], "a") as file:
        file.write(f"{time.time()} first step\n")
    ray.train.report({})


def main():
    """Join the cluster of RAY_ADDRESS and train."""
    import ray
    import ray.train.torch
    from ray.train import LoggingConfig, RunConfig, ScalingConfig

    ray.init(logging_level=logging.ERROR, log_to_driver=False)
    ray.train.torch.TorchTrainer(
        work,
        train_loop_config={"file": sys.argv[1]},
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            storage_path=f"{sys.argv[1]}.ray", logging_config=LoggingConfig(log_level="ERROR")
        ),
    ).fit()


main()
