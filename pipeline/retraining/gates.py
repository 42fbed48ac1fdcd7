"""The conditions for a promotion: each gate gives a sentence with its numbers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated, Literal

from pydantic import Field

from pipeline.estimate import Estimate
from pipeline.evaluation import glossary
from pipeline.params import Section

Measured = Literal[*glossary.MEASURES]  # type: ignore[valid-type]
NonNegative = Annotated[float, Field(ge=0)]
NORMAL = NormalDist()


class GateSettings(Section):
    """The section ``gates`` of params.yaml. No stage depends on it: gates read measures and change none."""

    # None of these may be worse than the champion's by more than noise.
    guarded: list[Measured] = Field(
        ["accuracy", "fid", "recall", "coverage", "label_agreement", "psnr"], min_length=1
    )
    # Without new pictures, one of these must be better.
    targets: list[Measured] = Field(["accuracy", "fid", "psnr"])
    # Standard deviation over seeds (`darkroom seeds`), added to the noise.
    seed_deviation: dict[Measured, NonNegative] = Field({})
    # Allowed loss of a guarded measure, in its unit, also within noise.
    max_loss: dict[Measured, NonNegative] = Field({})
    minimum_test_images: int = Field(100, ge=1)
    max_memorisation: float = Field(0.9, ge=0.5, le=1)  # of the lower end of the measure's interval
    max_megabytes: float | None = Field(None, gt=0)  # of the weights
    max_hours: float | None = Field(None, gt=0)  # of the training


@dataclass(frozen=True)
class Gate:
    """One condition and its result."""

    name: str
    passed: bool
    finding: str


@dataclass(frozen=True)
class Circumstances:
    """What is known about a challenger, apart from its measures."""

    new_pictures: int  # pictures on which the champion was not trained
    test_images: int
    megabytes: float  # of the weights
    hours: float  # of training; 0 if unknown


# The measures of a version, by protocol, the newest last.
Results = Mapping[str, Mapping[str, Estimate]]


def judge(
    challenger: Results,
    champion: Results | None,
    settings: GateSettings,
    circumstances: Circumstances | None = None,
) -> list[Gate]:
    """All gates, in order. ``champion`` is None if there is none yet.

    A guarded measure that only the champion has fails its gate.
    """
    shared = [protocol for protocol in challenger if protocol and (champion is None or protocol in champion)]
    numbers = challenger[shared[-1]] if shared else [{}, *challenger.values()][-1]
    measured = [name for name in settings.guarded if name in numbers]
    nothing = "no guarded measure is known; run: dvc repro evaluate; darkroom sync"
    gates = [Gate("measured", bool(measured), ", ".join(measured) or nothing)]
    gates += _limits(numbers, settings, circumstances) if circumstances else []
    if champion is None:
        return [*gates, Gate("better than the champion", True, "there is no champion yet")]
    finding = "both were measured by the same protocol"
    if not shared:
        finding = (
            "the champion knows other classes, or was measured on other data, in another feature space or by "
            "another version of Darkroom"
        )
    gates.append(Gate("comparable", bool(shared), finding))
    before = champion[shared[-1]] if shared else {}
    for name in settings.guarded:
        if name in before and name in numbers:
            gates.append(_not_worse(name, numbers, before, settings))
        elif name in before:
            gates.append(Gate(name, False, "measured for the champion only"))
    if circumstances and shared:
        gates.append(_worth_it(numbers, before, settings, circumstances.new_pictures))
    return gates


def _limits(
    numbers: Mapping[str, Estimate], settings: GateSettings, circumstances: Circumstances
) -> list[Gate]:
    images, least = circumstances.test_images, settings.minimum_test_images
    gates = [Gate("enough test images", images >= least, f"{images:,}, at least {least:,} are needed")]
    if "memorisation" in numbers:
        memorisation, most = numbers["memorisation"], settings.max_memorisation
        copied = memorisation.value if memorisation.low is None else memorisation.low
        finding = (
            f"at least {copied:.1%} of the images are nearer to a training image, at most {most:.0%} allowed"
        )
        gates.append(Gate("memorisation", copied <= most, finding))
    for name, found, allowed in (
        ("megabytes", circumstances.megabytes, settings.max_megabytes),
        ("hours", circumstances.hours, settings.max_hours),
    ):
        if allowed is not None:
            gates.append(Gate(name, found <= allowed, f"{found:.3g}, at most {allowed:g} allowed"))
    return gates


def _worth_it(
    numbers: Mapping[str, Estimate], before: Mapping[str, Estimate], settings: GateSettings, new_pictures: int
) -> Gate:
    """Better in a target, or trained on new pictures."""
    if new_pictures:
        return Gate("worth it", True, f"trained on {new_pictures:,} new pictures")
    targets = [name for name in settings.targets if name in before and name in numbers]
    compared = {name: _compare(name, numbers, before, settings, len(targets))[0] for name in targets}
    better = [name for name, verdict in compared.items() if verdict == "better"]
    nothing = "no new pictures, and no target is better by more than noise"
    return Gate("worth it", bool(better), f"better in {', '.join(better)}" if better else nothing)


def _not_worse(
    name: str, challenger: Mapping[str, Estimate], champion: Mapping[str, Estimate], settings: GateSettings
) -> Gate:
    verdict, gain, noise = _compare(name, challenger, champion, settings, claims=1)
    allowed = settings.max_loss.get(name, math.inf)  # type: ignore[call-overload]
    if gain < -allowed:
        verdict = f"worse by more than the {allowed:g} allowed"
    show = glossary.measure(name).show
    numbers = f"{show(challenger[name].value)} against {show(champion[name].value)}, noise {show(noise)}"
    return Gate(name, not verdict.startswith("worse"), f"{verdict}: {numbers}")


def _compare(
    name: str,
    challenger: Mapping[str, Estimate],
    champion: Mapping[str, Estimate],
    settings: GateSettings,
    claims: int,
) -> tuple[str, float, float]:
    """The verdict, the gain and the noise.

    The noise is the root of the sum of squares of half the 95 % intervals of both and of the deviation
    between seeds. If one of several ``claims`` is enough, it is widened by Bonferroni's correction.
    """
    gain = challenger[name].value - champion[name].value
    if glossary.measure(name).better == "lower":
        gain = -gain
    deviation = settings.seed_deviation.get(name, 0.0)  # type: ignore[call-overload]
    seeds = math.sqrt(2) * NORMAL.inv_cdf(0.975) * deviation
    noise = math.hypot(challenger[name].half_width, champion[name].half_width, seeds)
    noise *= NORMAL.inv_cdf(1 - 0.025 / claims) / NORMAL.inv_cdf(0.975)
    verdict = "better" if gain > noise else "within noise" if gain >= -noise else "worse by more than noise"
    return verdict, gain, noise
