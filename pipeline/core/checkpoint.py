"""Checkpoints that are whole or absent: written beside, hashed, then renamed; the newest that verifies is used."""

import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.core.ema import ExponentialMovingAverage
from pipeline.core.task import Phase
from pipeline.files import atomic_write, read_json, sha256, write_json

KEEP = 2


def state_of(average: ExponentialMovingAverage, phases: list[Phase]) -> dict[str, Tensor]:
    """Everything a training goes on from, as named tensors: weights, averaged weights, optimizers by phase name.

    The optimizers' hyperparameters are not state: they come from params.yaml, which is part of the training's fingerprint.
    """
    state = {f"task/{name}": value for name, value in average.source.state_dict().items()}
    state |= {f"average/{name}": value for name, value in average.task.state_dict().items()}
    for phase in phases:
        for index, values in phase.optimizer.state_dict()["state"].items():
            state |= {
                f"optimizer/{phase.name}/{index}/{name}": value
                for name, value in values.items()
                if value is not None
            }
    return state


def restore(state: dict[str, Tensor], average: ExponentialMovingAverage, phases: list[Phase]) -> None:
    """Put ``state_of``'s tensors back."""
    average.source.load_state_dict(_under("task/", state))
    average.task.load_state_dict(_under("average/", state))
    for phase in phases:
        values: dict[int, dict[str, Tensor]] = {}
        for key, value in _under(f"optimizer/{phase.name}/", state).items():
            index, _, name = key.partition("/")
            values.setdefault(int(index), {})[name] = value
        phase.optimizer.load_state_dict({**phase.optimizer.state_dict(), "state": values})
        for (
            parameter,
            state_of_it,
        ) in phase.optimizer.state.items():  # laid out in memory like their parameters, as they were
            for name, value in state_of_it.items():
                if value.shape == parameter.shape:
                    state_of_it[name] = torch.empty_like(parameter).copy_(value)


class CheckpointStore:
    """The checkpoints of one training: ``step-<number>.safetensors``, each made valid by a ``.json`` with its SHA-256."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, step: int, state: dict[str, Tensor]) -> None:
        """Write a checkpoint, then forget all but the newest two."""
        path = self.folder / f"step-{step:010d}.safetensors"
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        with atomic_write(path) as beside:
            save_file(tensors, beside)
        write_json(path.with_suffix(".json"), {"step": step, "sha256": sha256(path)})
        for old in sorted(self.folder.glob("step-*.json"))[:-KEEP]:
            old.unlink(missing_ok=True)
            old.with_suffix(".safetensors").unlink(missing_ok=True)

    def latest(self) -> tuple[int, dict[str, Tensor]] | None:
        """The newest whole checkpoint's step and state, or None. A damaged one is named on stderr and passed over."""
        for note in sorted(self.folder.glob("step-*.json"), reverse=True):
            path = note.with_suffix(".safetensors")
            try:
                card = read_json(note)
                if sha256(path) == card["sha256"]:
                    return card["step"], load_file(path)
                problem = "its bytes are not the ones that were written"
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                problem = str(error)
            print(f"passing over the damaged checkpoint {path}: {problem}", file=sys.stderr)
        return None


def _under(prefix: str, state: dict[str, Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
