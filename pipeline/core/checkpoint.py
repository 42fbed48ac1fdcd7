"""Checkpoints, written atomically and verified by SHA-256 when they are read."""

import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.core.ema import ExponentialMovingAverage
from pipeline.core.task import Phase
from pipeline.files import atomic_write, digest_of, read_json, sha256, write_json

NUM_KEPT = 2


def state_dict(average: ExponentialMovingAverage, phases: list[Phase]) -> dict[str, Tensor]:
    """The state of a training as named tensors: weights, averaged weights, and optimizer state by phase.

    The optimizers' hyperparameters are not included: they come from params.yaml, which is part of the
    training's fingerprint.
    """
    state = {f"task/{name}": value for name, value in average.source.state_dict().items()}
    state |= {f"average/{name}": value for name, value in average.task.state_dict().items()}
    for phase in _with_own_optimizer(phases):
        for index, values in phase.optimizer.state_dict()["state"].items():
            prefix = f"optimizer/{phase.name}/{index}/"
            state |= {prefix + name: value for name, value in values.items() if value is not None}
    return state


def load_state_dict(state: dict[str, Tensor], average: ExponentialMovingAverage, phases: list[Phase]) -> None:
    """Load what :func:`state_dict` returned."""
    average.source.load_state_dict(with_prefix("task/", state))
    average.task.load_state_dict(with_prefix("average/", state))
    for phase in _with_own_optimizer(phases):
        values: dict[int, dict[str, Tensor]] = {}
        for key, value in with_prefix(f"optimizer/{phase.name}/", state).items():
            index, _, name = key.partition("/")
            values.setdefault(int(index), {})[name] = value
        phase.optimizer.load_state_dict({**phase.optimizer.state_dict(), "state": values})
        # A checkpoint does not keep memory formats: give each tensor the strides of its parameter again.
        for parameter, tensors in phase.optimizer.state.items():
            for name, value in tensors.items():
                if value.shape == parameter.shape and name != "step":  # a number, on the CPU if not fused
                    tensors[name] = torch.empty_like(parameter).copy_(value)


def _with_own_optimizer(phases: list[Phase]) -> list[Phase]:
    """The phases without those that share the optimizer of an earlier phase."""
    return list({id(phase.optimizer): phase for phase in reversed(phases)}.values())[::-1]


class CheckpointStore:
    """The checkpoints of one training.

    Each is a file ``step-<number>.safetensors``. It is valid only with a ``.json`` file of the same name that
    holds a digest of its name, which has the step, and its bytes. This file is written after it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, step: int, state: dict[str, Tensor]) -> None:
        """Write a checkpoint, then delete all but the newest two."""
        path = self.folder / f"step-{step:010d}.safetensors"
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        with atomic_write(path) as temporary:
            save_file(tensors, temporary)
        write_json(path.with_suffix(".json"), {"sha256": _digest(path)})
        for old in sorted(self.folder.glob("step-*.json"))[:-NUM_KEPT]:
            old.unlink(missing_ok=True)
            old.with_suffix(".safetensors").unlink(missing_ok=True)

    def latest(self) -> tuple[int, dict[str, Tensor]] | None:
        """The step and state of the newest valid checkpoint, or None. Damaged ones are reported on stderr."""
        for metadata in sorted(self.folder.glob("step-*.json"), reverse=True):
            path = metadata.with_suffix(".safetensors")
            try:
                if _digest(path) == read_json(metadata)["sha256"]:
                    return int(path.stem.removeprefix("step-")), load_file(path)
                problem = "its SHA-256 does not match"
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                problem = str(error)
            print(f"skipping the damaged checkpoint {path}: {problem}", file=sys.stderr)
        return None


def _digest(path: Path) -> str:
    return digest_of([path.name, sha256(path)])


def with_prefix(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
