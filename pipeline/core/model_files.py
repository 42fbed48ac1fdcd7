"""Find models by name; save and load trained models as folders with ``model.safetensors`` and ``model.json``.

The model ``<name>`` is the Task that the module ``pipeline/models/<name>.py`` defines, or the package
``pipeline/models/<name>/`` in its ``__init__.py``. The module is imported when the
model is used, so no code here depends on a particular model.
"""

import hashlib
import importlib
import inspect
import json
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_weights
from safetensors.torch import save

from pipeline.core.determinism import allow_tf32
from pipeline.core.noise import initialisation
from pipeline.core.task import DataSpec, Task
from pipeline.errors import BadInput, DarkroomError
from pipeline.files import atomic_folder, digest_of, read_json, sha256, write_json
from pipeline.params import validate

allow_tf32(False)  # PyTorch's default allows it for convolutions; a training sets it as its params say

WEIGHTS, CARD = "model.safetensors", "model.json"
MODELS = "pipeline.models"


def names() -> list[str]:
    """The names of all models."""
    return [name for name in _modules() if _task_in(name) is not None]


def find(name: str) -> type[Task]:
    """The Task that ``pipeline.models.<name>`` defines. Raises ``BadInput`` for an unknown name."""
    task = _task_in(name) if name in _modules() else None
    if task is None:
        raise BadInput("no such model", where=name, remedy=f"choose one of: {', '.join(names())}")
    return task


def code_path(name: str, root: Path) -> Path:
    """The file or folder with the code of the model ``name``; ``root`` is the folder ``pipeline``."""
    folder = root / "models" / name
    return folder if folder.is_dir() else folder.with_suffix(".py")


def build(name: str, config: Any, spec: DataSpec, seed: int, needs: Mapping[str, Task] | None = None) -> Task:
    """A new model with initial weights from ``seed``.

    ``config`` is the model's Config, or a dict of its values. ``needs`` are the trained models that it needs,
    by name; their weights are not changed.
    """
    kind = find(name)
    if not isinstance(config, kind.Config):
        config = validate(config, kind.Config, where=f"{name}.model")
    for needed in (needs or {}).values():
        needed.eval().requires_grad_(False)
    with initialisation(seed):
        return kind(config, spec, **needs or {})


def write(task: Task, folder: Path, card: dict[str, Any]) -> dict[str, Any]:
    """Write ``folder`` atomically. Returns its model.json: see :func:`describe`, SHA-256 and ``card``."""
    weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in task.state_dict().items()})
    with atomic_folder(folder) as temporary:
        (temporary / WEIGHTS).write_bytes(weights)
        full = {
            **card,
            **describe(task),
            "sha256": sha256(temporary / WEIGHTS),
            "parameters": sum(parameter.numel() for parameter in task.parameters()),
        }
        write_json(temporary / CARD, {**full, "digest": digest_of(full)})
    return full


def describe(task: Task) -> dict[str, Any]:
    """All that is needed to build ``task`` again: name, config, data spec, and the models that it needs.

    The weights of those are among its own.
    """
    needs = {name: describe(getattr(task, name)) for name in task.needs}
    return {
        "name": type(task).__module__.rpartition(".")[2],
        "config": json.loads(task.config.model_dump_json()),
        "spec": task.spec.to_json(),
        **({"needs": needs} if needs else {}),
    }


def read_card(folder: Path) -> dict[str, Any]:
    """The content of model.json. Raises ``BadInput`` if it is missing, incomplete or was changed."""
    if not (folder / CARD).is_file():
        remedy = f"train it: dvc repro train-{folder.name}"
        raise BadInput("no trained model here", where=str(folder), remedy=remedy)
    try:
        card = read_json(folder / CARD)
        recorded = card.pop("digest", "")  # an earlier version of Darkroom wrote none
        if {"name", "config", "spec", "sha256"} <= set(card) and recorded in ("", digest_of(card)):
            return card
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass
    raise BadInput("is not a complete model.json", where=str(folder / CARD), remedy=_remedy(folder))


def load(folder: Path, device: str = "cpu") -> Task:
    """Load and verify the trained model in ``folder``, for inference (no gradients)."""
    card, weights = read(folder)
    try:
        return restore(card, weights).to(device)
    except BadInput as error:  # of a setting in model.json
        raise BadInput(f"{error.where}: {error.what}", where=str(folder), remedy=_remedy(folder)) from None
    except (SafetensorError, RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        what = f"the weights do not fit the code ({reason})"
        raise DarkroomError(what, where=str(folder), remedy=_remedy(folder)) from None


def read(folder: Path) -> tuple[dict[str, Any], bytes]:
    """The card and the weights (safetensors) in ``folder``. Raises ``DarkroomError`` if they do not match."""
    card, path = read_card(folder), folder / WEIGHTS
    weights = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(weights).hexdigest() != card["sha256"]:
        what = "the weights do not match the SHA-256 in model.json"
        raise DarkroomError(what, where=str(path), remedy=_remedy(folder))
    return card, weights


def restore(card: dict[str, Any], weights: bytes) -> Task:
    """The model that ``card`` describes, with ``weights`` (safetensors), for inference.

    Raises ``DarkroomError`` if a parameter is infinite or a weight is NaN.
    """

    def rebuild(part: dict[str, Any]) -> Task:
        needs = {name: rebuild(needed) for name, needed in part.get("needs", {}).items()}
        return build(part["name"], part["config"], DataSpec.from_json(part["spec"]), 0, needs)

    task = rebuild(card)
    task.load_state_dict(load_weights(weights))
    infinite = any(not parameter.isfinite().all() for parameter in task.parameters())
    if infinite or any(tensor.isnan().any() for tensor in task.state_dict().values()):
        remedy = "its training diverged: lower its learning rate, then train it again"
        raise DarkroomError("its weights are not finite", where=card["name"], remedy=remedy)
    return task.eval().requires_grad_(False)


def digest(folder: Path) -> str:
    """A digest of a trained model's configuration and weights."""
    card = read_card(folder)
    return digest_of([card["name"], card["config"], card["spec"], card["sha256"]])


def _remedy(folder: Path) -> str:
    again = f"train again (dvc repro -f train-{folder.name})"
    return f"restore it (rm -rf {folder} && dvc checkout {folder}) or {again}"


def _modules() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(importlib.import_module(MODELS).__path__)]


def _task_in(name: str) -> type[Task] | None:
    module = importlib.import_module(f"{MODELS}.{name}")
    for _, value in inspect.getmembers(module, inspect.isclass):
        own = value.__module__ == module.__name__  # not imported
        if own and issubclass(value, Task) and not inspect.isabstract(value):
            return value
    return None
