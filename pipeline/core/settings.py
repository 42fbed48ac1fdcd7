"""The ``training`` part of a model's section in params.yaml."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipeline.errors import BadInput
from pipeline.params import PARAMS, Section, read_section


class ScheduleSettings(Section):
    """The learning-rate schedule: a factor, with linear warm-up and then a decay to ``final``."""

    kind: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    final: float = Field(0.0, ge=0, le=1)  # the factor at the last step


class TrainingSettings(Section):
    """Settings of one training. ``batch_size`` is global: it is shared among the workers."""

    seed: int = Field(0, ge=0, lt=2**31)
    num_steps: int = Field(1000, ge=1, le=100_000_000)
    batch_size: int = Field(64, ge=1, le=1_000_000)
    sampling: Literal["shuffle", "balanced"] = "shuffle"  # balanced: all classes have the same share
    precision: Literal["float32", "bfloat16", "float16"] = "float32"  # of the networks; weights: float32
    tf32: bool = False  # whether GPUs may round the inputs of float32 products to 10 bits
    compile: bool = False  # losses by torch.compile, which needs a C++ compiler (CPU) or Triton (GPU)
    clip_norm: float | None = Field(None, gt=0)  # maximum norm of a phase's gradient, over all its parameters
    l1: float = Field(0.0, ge=0)  # added to the loss: l1 * sum |w| over weights (not biases)
    l2: float = Field(0.0, ge=0)  # added to the loss: l2 * sum w^2 over weights (not biases)
    ema_decay: float = Field(0.0, ge=0, lt=1)  # of the averaged weights; 0: no averaging
    schedule: ScheduleSettings = ScheduleSettings()
    initial_weights: str = ""  # models/<name> or a .safetensors file; see pipeline/core/initial_weights.py
    keep: Literal["last", "best"] = "last"  # the weights handed on: of the last step or the best validation
    monitor: str = ""  # the metric that decides, such as validation/accuracy
    monitor_mode: Literal["min", "max"] = "min"  # whether a smaller or a larger value is better
    patience: int | None = Field(None, ge=1)  # validations without improvement that end the training
    log_every: int = Field(25, ge=1)
    validate_every: int = Field(250, ge=1)
    sample_every: int = Field(500, ge=1)
    checkpoint_every: int = Field(250, ge=1)


def read_training(name: str, config: type[Section], path: Path = PARAMS) -> tuple[TrainingSettings, Any]:
    """The training settings and the model's configuration (a ``config``) from the section ``name``."""

    class ModelSection(Section):
        training: TrainingSettings = TrainingSettings()
        model: config = config()  # type: ignore[valid-type]

    section = read_section(name, ModelSection, path)
    if not section.training.monitor and (section.training.keep == "best" or section.training.patience):
        where = f"{path}: {name}.training.monitor"
        remedy = "for example validation/accuracy, with its monitor_mode"
        raise BadInput("keep: best and patience need a metric to monitor", where=where, remedy=remedy)
    if section.training.schedule.warmup_steps >= section.training.num_steps:
        where = f"{path}: {name}.training.schedule.warmup_steps"
        raise BadInput("the warm-up is not shorter than the training", where=where, remedy="shorten it")
    return section.training, section.model
