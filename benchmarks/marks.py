"""Run the stage ``train-<model>`` and record when each part of its start ends.

    python marks.py SPAWNED FILE MODEL

SPAWNED is the start time of this process in seconds since the epoch. Each line of FILE has a time and the
part that ended then. The Ray workers write to FILE too, so they must be on the same machine.
"""

import sys
import time

first, (spawned, path, name) = time.time(), sys.argv[1:]


def mark(part, at=None):
    """Record the end of ``part``."""
    with open(path, "a") as file:
        file.write(f"{at or time.time()} {part}\n")


def marked(owner, function, part, before=False):
    """Record the end of ``part`` when ``function`` of ``owner`` returns (``before``: when it is called)."""
    inner = getattr(owner, function)

    def wrapped(*args, **kwargs):
        if before:
            mark(part)
        result = inner(*args, **kwargs)
        if not before:
            mark(part)
        return result

    setattr(owner, function, wrapped)


def work(job):
    """The Ray worker."""
    from pipeline.core import loop, step
    from pipeline.launch import worker

    mark("process group")
    marked(worker, "make_deterministic", "settings of PyTorch")
    marked(worker, "_open_data", "data, in the worker")
    marked(loop.Loop, "run", "model", before=True)
    marked(step.Step, "run", "first step")
    return worker.train_worker(job)


mark("spawned", spawned)
mark("interpreter", first)
from pipeline import environment, process  # noqa: E402

environment.prepare()
import ray.train.torch  # noqa: E402, F401

import pipeline.tracking.runs  # noqa: E402, F401
import stages.train  # noqa: E402
from pipeline.launch import plan, ray_train, training  # noqa: E402

mark("imports")
marked(training, "train", "data, in the stage", before=True)
marked(plan, "start_ray", "joining Ray")
marked(ray_train, "check_cluster", "preflight")
marked(ray_train, "use_node_address", "worker group and its imports", before=True)
ray_train.train_worker = work
process.run(stages.train.main, name)
