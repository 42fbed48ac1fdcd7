"""Write what a model computes as an ONNX file, and check the file with ONNX Runtime."""

import json
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import environment
from pipeline.core.abilities import Ability
from pipeline.core.dataset import Dataset
from pipeline.core.fields import PROCESSED
from pipeline.core.noise import Noise
from pipeline.core.task import Task
from pipeline.errors import BadInput, DarkroomError
from pipeline.files import atomic_write

COUNT = 16  # examples on which a file is checked
TOLERANCE = 1e-4  # of probabilities, and of images in [0, 1]
OUTPUTS = {
    Ability.CLASSIFY: "probabilities",
    Ability.GENERATE: "generated",
    Ability.RECONSTRUCT: "reconstructions",
}


@dataclass(frozen=True)
class GivenNoise(Noise):
    """Noise whose random numbers are ``drawn``, by name. Numbers that are not there yet are added to it."""

    drawn: dict[str, Tensor] = field(default_factory=dict)

    def _draw(self, name: str, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        if name not in self.drawn:
            self.drawn[name] = super()._draw(name, draw)
        return self.drawn[name]


class Exported(nn.Module):
    """One ability of ``task`` as a function of tensors, which are named ``inputs``.

    Generation is a function of the labels, if they are among the inputs, and of the random numbers.
    """

    def __init__(self, task: Task, ability: Ability, inputs: list[str]) -> None:
        super().__init__()
        self.task, self.ability, self.inputs = task, ability, inputs
        for module in list(task.modules()):
            for name, value in list(module.named_buffers(recurse=False)):
                if value.dtype == torch.bool and value.dim() == 0:  # flags are constants of the graph
                    delattr(module, name)
                    setattr(module, name, bool(value))

    def forward(self, *values: Tensor) -> Tensor:
        if self.ability is Ability.CLASSIFY:
            result = self.task.classify(values[0])
        elif self.ability is Ability.RECONSTRUCT:
            result = self.task.reconstruct(values[0])
        else:
            given, count = dict(zip(self.inputs, values)), values[0].shape[0]
            # A model that does not use labels gets some, so that it does not draw them.
            labels = given.pop("labels", torch.zeros(count, dtype=torch.int64))
            result = self.task.generate(labels, count, GivenNoise(0, 0, "", 0, count, count, drawn=given))
        assert result is not None
        return result.softmax(1) if self.ability is Ability.CLASSIFY else result


def export(task: Task, ability: Ability, uses_labels: bool, card: dict[str, Any], path: Path) -> str:
    """Write ``path``, with the ``card`` of the model as metadata. Returns a sentence about the check.

    Raises ``BadInput`` without the packages of the extra ``onnx``, and ``DarkroomError`` if ONNX Runtime
    gives other answers; then nothing is written.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (PyTorch uses it)
    except ImportError as error:
        what, remedy = f"the package {error.name} is not installed", "pip install 'darkroom[onnx]'"
        raise BadInput(what, where="darkroom export", remedy=remedy) from None
    examples, of = _examples(task, ability, uses_labels)
    module = Exported(task, ability, list(examples)).eval()
    program = _program(module, examples)
    program.model.metadata_props.update(_metadata(card))
    with atomic_write(path) as temporary:
        program.save(str(temporary))
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {name: values.numpy() for name, values in examples.items()})
        with torch.inference_mode():
            expected = module(*examples.values()).numpy()
        difference = np.abs(found - expected).max() if found.shape == expected.shape else np.inf
        if not difference <= TOLERANCE:
            what = f"ONNX Runtime's answers differ by up to {difference:.2g}, and nothing was written"
            raise DarkroomError(what, where=str(path), remedy="use another version of onnx and onnxruntime")
    return f"ONNX Runtime gives the same answers for {COUNT} {of}, within {difference:.1g}"


def _program(module: Exported, examples: dict[str, Tensor]) -> Any:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names operators of missing packages
    with warnings.catch_warnings(action="ignore"):
        return torch.onnx.export(
            module,
            tuple(values[:2] for values in examples.values()),
            input_names=list(examples),
            output_names=[OUTPUTS[module.ability]],
            dynamic_shapes=(tuple({0: torch.export.Dim("batch")} for _ in examples),),
            dynamo=True,
            verbose=False,
        )


def _examples(task: Task, ability: Ability, uses_labels: bool) -> tuple[dict[str, Tensor], str]:
    """Inputs by name, ``COUNT`` of each, and what they are."""
    if ability is Ability.GENERATE:
        noise = GivenNoise.whole(0, COUNT, "export")
        assert isinstance(noise, GivenNoise)
        labels = torch.arange(COUNT) % task.spec.classes
        task.generate(labels, COUNT, noise)
        return ({"labels": labels} if uses_labels else {}) | noise.drawn, "random inputs"
    root = environment.find_project(Path())
    folder = (root or Path()) / PROCESSED / task.dataset
    if (folder / "manifest.json").is_file() and (data := Dataset.open(folder)).spec == task.spec:
        rows = np.linspace(0, len(data.test) - 1, COUNT).astype(np.int64)
        return {"images": data.test.batch(rows).images.contiguous()}, "test pictures"
    noise = Noise.whole(0, COUNT, "export")
    return {"images": noise.uniform("images", *task.spec["image"].shape)}, "random pictures"


def _metadata(card: dict[str, Any]) -> dict[str, str]:
    kept = {key: card[key] for key in ("name", "sha256", "class_names", "fit") if key in card}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in kept.items()}
