"""The stage ``train-<model>``, which writes down when each part of its start is done: python marks.py SPAWNED FILE MODEL.

SPAWNED: when this process was started, in seconds since the epoch. Lines of FILE: a time, and the part that ended then. Ray sends what
is defined here to its workers as it is, so they write there too: one machine only.
"""

import sys
import time

first, (spawned, path, name) = time.time(), sys.argv[1:]


def mark(part, at=None):
    """Now ``part`` is done."""
    with open(path, "a") as file:
        file.write(f"{at or time.time()} {part}\n")


def marked(owner, function, part, before=False):
    """When ``function`` of ``owner`` returns (``before``: begins), ``part`` is done."""
    inner = getattr(owner, function)

    def wrapped(*given, **named):
        if before:
            mark(part)
        answer = inner(*given, **named)
        if not before:
            mark(part)
        return answer

    setattr(owner, function, wrapped)


def work(job):
    """A worker."""
    from pipeline.core import loop, step
    from pipeline.launch import worker

    mark("process group")
    marked(worker, "make_deterministic", "switches of PyTorch")
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
marked(plan, "_start_ray", "joining Ray")
marked(ray_train, "check_cluster", "preflight")
marked(ray_train, "use_node_address", "worker group and its imports", before=True)
ray_train.train_worker = work
process.run(stages.train.main, name)
