"""The section ``search`` of params.yaml: what is searched for each model, and how."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.errors import BadInput
from pipeline.params import PARAMS, Section, read_file, suggestion, validate
from pipeline.tracking.rerun import as_text

Sampler = Literal["bayesian", "random", "grid"]
FIXED = (".training.seed", ".training.initial_weights")  # the seeds are those of the trial
Pruner = Literal["median", "hyperband", "none"]


class Setting(Section):
    """The values that a setting can have: a range from ``low`` to ``high``, or ``choices``.

    A range of two whole numbers has whole numbers only, unless the setting in params.yaml is not whole.
    """

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False  # the logarithm is searched evenly
    step: int | float | None = Field(None, gt=0)  # between two values
    num_points: int = Field(5, ge=2)  # of a range without a step, in a grid
    choices: tuple[Any, ...] = ()
    when: dict[str, Any] = Field({})  # other settings and their values, for which this one is searched

    @model_validator(mode="after")
    def _possible(self) -> "Setting":
        low, high = self.low, self.high
        labels = [as_text(choice) for choice in self.choices]
        self.refuse(
            {
                "it needs choices, or low and high": not self.choices and (low is None or high is None),
                "it has choices and a range": bool(self.choices) and not (low is None and high is None),
                f"low {low} is above high {high}": None not in (low, high) and low > high,  # type: ignore
                f"log needs a low above 0, not {low}": self.log and low is not None and low <= 0,
                "log and step exclude each other": self.log and self.step is not None,
                "two choices are the same": len(set(labels)) < len(labels),
            },
            {},
        )
        return self

    @property
    def values(self) -> dict[str, Any]:
        """The choices by their text."""
        return {as_text(choice): choice for choice in self.choices}


class ModelSearch(Section):
    """The search of one model. Settings are named as in ``dvc exp run -S``, such as ``gan.model.width``."""

    metric: str = ""  # of the validation split; '': training.monitor, or else validation/loss
    mode: Literal["min", "max"] | None = None  # whether a smaller or a larger value is better
    sampler: Sampler = "bayesian"
    pruner: Pruner = "median"  # which ends trainings that are worse than others at the same step
    seed: int = Field(0, ge=0, lt=2**31)  # of the sampler
    settings: dict[str, Setting] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> "ModelSearch":
        wrong = {}
        if self.metric and not self.metric.startswith("validation/"):
            wrong["metric has to be one of the validation split, such as validation/loss"] = True
        if self.metric and self.mode is None:
            wrong["mode is missing: whether the smallest (min) or the largest (max) metric is the best"] = (
                True
            )
        earlier = list[str]()
        for name, setting in self.settings.items():
            for other, values in setting.when.items():
                if other not in earlier:
                    wrong[f"{name} depends on {other}, which is not listed before it"] = True
                elif known := self.settings[other].values:
                    for value in sorted(allowed(values) - known.keys()):
                        wrong[f"{name} depends on {other}: {value}, which is not one of its choices"] = True
            earlier.append(name)
        self.refuse(wrong, {})
        return self

    def is_active(self, name: str, chosen: Mapping[str, Any]) -> bool:
        """Whether the setting ``name`` is searched where earlier ones are ``chosen``."""
        conditions = self.settings[name].when.items()
        return all(
            other in chosen and as_text(chosen[other]) in allowed(values) for other, values in conditions
        )


def allowed(values: Any) -> set[str]:
    """The texts of the values that a condition accepts: one value, or a list of them."""
    return {as_text(value) for value in (values if isinstance(values, list) else [values])}


def read(name: str, path: Path = PARAMS) -> ModelSearch:
    """What is searched for the model ``name``. Raises ``BadInput`` if there is nothing valid."""
    section = read_file(path).get("search")
    where = f"{path}: search"
    if not isinstance(section, dict):
        remedy = "add it (docs/experiments.md, Search)"
        raise BadInput("has no section 'search'", where=str(path), remedy=remedy)
    if name not in section:
        remedy = suggestion(name, [*section], f"add search.{name}, or choose one of")
        raise BadInput(f"does not say what to search for '{name}'", where=where, remedy=remedy)
    search = validate(section[name], ModelSearch, where=f"{where}.{name}")
    faults = [f"{key}: is not a setting of {name}" for key in search.settings if not _is_of(key, name)]
    faults += [f"{key}: cannot be searched" for key in search.settings if key.endswith(FIXED)]
    if faults:
        remedy = f"name settings of {name}, such as {name}.training.batch_size"
        raise BadInput("; ".join(faults), where=f"{where}.{name}.settings", remedy=remedy)
    return search


def _is_of(key: str, name: str) -> bool:
    return key.startswith((f"{name}.training.", f"{name}.model."))
