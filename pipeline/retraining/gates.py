"""Whether a challenger may take the champion's place: each gate a sentence with its numbers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from pipeline.evaluation import glossary
from pipeline.params import Section


class GateSettings(Section):
    """The section ``gates`` of params.yaml. No stage depends on it: gates judge what was measured, they change nothing."""

    guarded: list[Literal[*glossary.MEASURES]] = Field(["accuracy", "fid", "recall", "coverage", "label_agreement", "psnr"], min_length=1)  # type: ignore[valid-type]


@dataclass(frozen=True)
class Gate:
    """One condition, and what was found."""

    name: str
    passed: bool
    finding: str


Results = Mapping[str, Mapping[str, float]]  # a version's measures, as ``evaluate`` flattens them, by protocol, the newest last


def judge(challenger: Results, champion: Results | None, settings: GateSettings) -> list[Gate]:
    """All gates, in order; ``champion`` is None where there is none yet. What cannot be compared is a gate that is not passed."""
    shared = [protocol for protocol in challenger if protocol and protocol in (champion or challenger)]
    numbers = challenger[shared[-1]] if shared else [{}, *challenger.values()][-1]
    measured = [name for name in settings.guarded if name in numbers]
    gates = [Gate("measured", bool(measured), ", ".join(measured) or "no guarded measure is known: dvc repro evaluate, darkroom sync")]
    if champion is None:
        return [*gates, Gate("better than the champion", True, "there is no champion yet")]
    said = "one protocol measured both" if shared else "the champion was measured on other data, or in another feature space"
    gates.append(Gate("comparable", bool(shared), said))
    before = champion[shared[-1]] if shared else {}
    for name in settings.guarded:
        if name in before and name in numbers:
            gates.append(_not_worse(name, numbers, before))
        elif name in before:
            gates.append(Gate(name, False, "the champion was measured by it, this one was not"))
    return gates


def _not_worse(name: str, challenger: Mapping[str, float], champion: Mapping[str, float]) -> Gate:
    """Not worse by more than noise: half the 95 % intervals of both, added as independent errors are."""
    measure = glossary.measure(name)
    gain = (challenger[name] - champion[name]) * (-1 if measure.better == "lower" else 1)
    noise = math.hypot(_half_width(name, challenger), _half_width(name, champion))
    verdict = "better" if gain > noise else "within noise" if gain >= -noise else "worse by more than noise"
    numbers = f"{measure.show(challenger[name])} against {measure.show(champion[name])}, noise {measure.show(noise)}"
    return Gate(name, gain >= -noise, f"{verdict}: {numbers}")


def _half_width(name: str, numbers: Mapping[str, float]) -> float:
    low, high = numbers.get(f"{name}_low"), numbers.get(f"{name}_high")
    return 0.0 if low is None or high is None else (high - low) / 2
