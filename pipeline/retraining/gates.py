"""The conditions for a promotion: each gate gives a sentence with its numbers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated, Literal

from pydantic import Field

from pipeline.estimate import Estimate, missed_floor
from pipeline.evaluation import glossary
from pipeline.params import Section

Measured = Literal[*glossary.MEASURES]  # type: ignore[valid-type]
NonNegative = Annotated[float, Field(ge=0)]
Numbers = Mapping[str, Estimate]  # the measures of a version, by name
quantile = NormalDist().inv_cdf


class GateSettings(Section):
    """The section ``gates`` of params.yaml. No stage depends on it: gates read measures and change none."""

    # None of these may be worse than the champion's by more than noise.
    guarded: list[Measured] = Field(
        [
            "accuracy",
            "balanced_accuracy",
            "fid",
            "recall",
            "coverage",
            "label_agreement",
            "psnr",
            "mean_iou",
            "frame_mse",
        ],
        min_length=1,
    )
    # Without new pictures, one of these must be better.
    targets: list[Measured] = Field(["accuracy", "fid", "psnr", "mean_iou", "frame_mse"])
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
class Facts:
    """What is known about a challenger, apart from its measures. What is None has no gate."""

    test_images: int | None = None
    megabytes: float | None = None  # of the weights
    hours: float | None = None  # of the training
    new_pictures: int | None = None  # pictures on which the champion was not trained
    incomparable: str = ""  # why the champion could not be measured


def newest_protocol(challenger: Mapping[str, Numbers], champion: Mapping[str, Numbers] | None) -> str:
    """The newest protocol of the challenger, if possible one that it shares with the champion."""
    shared = [protocol for protocol in challenger if protocol and protocol in (champion or challenger)]
    return [*challenger, *shared][-1] if challenger else ""


def judge(
    challenger: Mapping[str, Numbers],
    champion: Mapping[str, Numbers] | None,
    settings: GateSettings,
    facts: Facts,
) -> list[Gate]:
    """All gates, in order. The measures are by protocol, the newest last.

    ``champion`` is None if there is none yet. A guarded measure that only the champion has fails its gate.
    """
    protocol = newest_protocol(challenger, champion)
    numbers = challenger.get(protocol, {})
    measured = ", ".join(name for name in settings.guarded if numbers.get(name))
    nothing = "no guarded measure is known; run: dvc repro evaluate; darkroom sync"
    gates = [Gate("measured", bool(measured), measured or nothing), *_limits(numbers, settings, facts)]
    if champion is None:
        missed = missed_floor(numbers)
        gates.append(Gate("above its floor", not missed, missed or "above what needs no training"))
        return [*gates, Gate("better than the champion", True, "there is no champion yet")]
    if not protocol or protocol not in champion:
        why = (
            "the champion knows other classes, or was measured on other data, in another feature space or by "
            "another version of Darkroom"
        )
        return [*gates, Gate("comparable", False, facts.incomparable or why)]
    gates.append(Gate("comparable", True, "both were measured by the same protocol"))
    before = champion[protocol]
    for name in settings.guarded:
        ours, theirs = numbers.get(name), before.get(name)
        if theirs and not ours:
            gates.append(Gate(name, False, "measured for the champion only"))
        elif ours and theirs:
            gates.append(_not_worse(name, ours, theirs, settings))
    if facts.new_pictures is not None:
        gates.append(_worth_it(numbers, before, settings, facts.new_pictures))
    return gates


def _limits(numbers: Numbers, settings: GateSettings, facts: Facts) -> list[Gate]:
    gates, copied = list[Gate](), numbers.get("memorisation")
    if (images := facts.test_images) is not None:
        least = settings.minimum_test_images
        finding = f"{images:,}, at least {least:,} are needed"
        gates.append(Gate("enough test images", images >= least, finding))
    if copied:
        most, least_share = settings.max_memorisation, copied.least
        share = f"at least {least_share:.1%} of the images are nearer to a training image"
        gates.append(Gate("memorisation", least_share <= most, f"{share}, at most {most:.0%} allowed"))
    for name in ("megabytes", "hours"):
        found, allowed = getattr(facts, name), getattr(settings, f"max_{name}")
        if found is not None and allowed is not None:
            gates.append(Gate(name, found <= allowed, f"{found:.3g}, at most {allowed:g} allowed"))
    return gates


def _worth_it(numbers: Numbers, before: Numbers, settings: GateSettings, new_pictures: int) -> Gate:
    """Better in a target, or trained on new pictures."""
    if new_pictures:
        return Gate("worth it", True, f"trained on {new_pictures:,} new pictures")
    pairs = {name: (numbers.get(name), before.get(name)) for name in settings.targets}
    known = {name: (ours, theirs) for name, (ours, theirs) in pairs.items() if ours and theirs}
    compared = {name: compare(name, *pair, settings, len(known)) for name, pair in known.items()}
    better = ", ".join(name for name, (gain, noise) in compared.items() if gain > noise)
    nothing = "no new pictures, and no target is better by more than noise"
    return Gate("worth it", bool(better), f"better in {better}" if better else nothing)


def _not_worse(name: str, ours: Estimate, theirs: Estimate, settings: GateSettings) -> Gate:
    gain, noise = compare(name, ours, theirs, settings)
    verdict = "better" if gain > noise else "within noise" if gain >= -noise else "worse by more than noise"
    allowed = settings.max_loss.get(name, math.inf)  # type: ignore[call-overload]
    if gain < -allowed:
        verdict = f"worse by more than the {allowed:g} allowed"
    show = glossary.measure(name).show
    numbers = f"{show(ours.value)} against {show(theirs.value)}, noise {show(noise)}"
    return Gate(name, not verdict.startswith("worse"), f"{verdict}: {numbers}")


def compare(
    name: str, ours: Estimate, theirs: Estimate, settings: GateSettings, claims: int = 1
) -> tuple[float, float]:
    """The gain of ``ours`` over ``theirs`` and the noise, in the measure's unit.

    The noise is the root of the sum of squares of half the 95 % intervals of both and of the deviation
    between seeds. If one of several ``claims`` is enough, it is widened by Bonferroni's correction.
    """
    gain = (ours.value - theirs.value) * (-1 if glossary.measure(name).better == "lower" else 1)
    deviation = settings.seed_deviation.get(name, 0.0)  # type: ignore[call-overload]
    seeds = math.sqrt(2) * quantile(0.975) * deviation
    noise = math.hypot(ours.half_width, theirs.half_width, seeds)
    return gain, noise * quantile(1 - 0.025 / claims) / quantile(0.975)
