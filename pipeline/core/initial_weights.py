"""Begin a training with the weights of another model (``training.initial_weights``)."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from pipeline.core.model_files import WEIGHTS
from pipeline.core.task import Task
from pipeline.errors import BadInput

REMEDY = "give a folder models/<name> or a .safetensors file"
MAX_NAMES = 5  # listed in a message


def read(path: Path) -> bytes:
    """The safetensors file ``path``, or that of the model in the folder ``path``."""
    file = path / WEIGHTS if path.is_dir() else path
    try:
        return file.read_bytes()
    except OSError as error:
        where = f"initial_weights: {path}"
        raise BadInput(f"cannot be read ({error.strerror})", where=where, remedy=REMEDY) from None


def apply(task: Task, weights: bytes, path: str) -> list[str]:
    """Copy the tensors whose names and shapes are those of ``task``. Returns lines that say which.

    Raises ``BadInput`` if the file is damaged or no tensor matches.
    """
    where = f"initial_weights: {path}"
    try:
        given = load(weights)
    except SafetensorError as error:
        raise BadInput(f"is not a safetensors file ({error})", where=where, remedy=REMEDY) from None
    own = task.state_dict()
    matching = {name for name, value in given.items() if name in own and own[name].shape == value.shape}
    if not matching:
        what = "no tensor has the name and shape of one of this model"
        raise BadInput(what, where=where, remedy=f"it needs, for example, {_some(own)}")
    with torch.no_grad():
        for name in matching:
            own[name].copy_(given[name])
    lines = [f"{len(matching)} of {len(own)} tensors are from {path}"]
    for what, names in (("new", own.keys() - matching), ("not used", given.keys() - matching)):
        if names:
            lines.append(f"{what}: {_some(dict.fromkeys(sorted(names)))}")
    return lines


def _some(names: dict[str, Tensor] | dict[str, None]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(list(names)[:MAX_NAMES]) + more
