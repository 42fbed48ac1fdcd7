"""Checks of new pictures. A picture is kept, waits or is quarantined."""

import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from pipeline.core.task import DataSpec
from pipeline.data.decoding import chunk_size
from pipeline.data.folders import arrange, read_file
from pipeline.data.images import FORMATS, decode
from pipeline.data.settings import Fit
from pipeline.data.splits import MIN_IMAGES
from pipeline.errors import BadInput
from pipeline.retraining.incoming import Arrival, Picture, folders, spread
from pipeline.retraining.settings import QualitySettings

MAX_NAMES = 20  # pictures that a finding names
DUPLICATES = "duplicates"  # the check that quarantines none
# uint8 images (N, C, H, W) -> probabilities (N, classes)
Classify = Callable[[np.ndarray], np.ndarray] | None
Faults = dict[str, dict[Picture, str]]  # check -> picture -> reason


@dataclass(frozen=True)
class Finding:
    """The result of a check; ``names``: the first pictures that it concerns."""

    check: str
    level: Literal["fine", "wait", "quarantine", "refuse"]
    sentence: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Quality:
    """The findings of all checks.

    Pictures that are neither kept nor quarantined are checked again by the next retraining.
    """

    findings: list[Finding]
    kept: list[Picture]  # good, sorted by name
    quarantined: dict[str, str]  # by key: name and reason
    refused: str  # why the delivery as a whole cannot be used; '' if it can
    waits: bool  # whether the good pictures are too few for a training


def examine(
    arrival: Arrival,
    settings: QualitySettings,
    spec: DataSpec,
    class_names: Sequence[str],
    classify: Classify,
    fit: Fit = "crop",
) -> Quality:
    """Check the fresh pictures, decoded as for training, one chunk in memory at a time.

    ``class_names`` are the known classes, in the order of the columns of ``classify`` (the champion). If
    there are none, any class is allowed.
    """
    side, contrast = settings.minimum_side_pixels, settings.minimum_contrast
    descriptions = {
        "class folder": "are not in the folder of a known class",
        "same name": "have the name of an accepted picture but other bytes; these are never overwritten",
        "one class": "have the same bytes as a picture of another class",
        "readable": "cannot be decoded",
        "size": f"have a side of fewer than {side} pixels",
        "contrast": f"are nearly constant: the standard deviation of their grey values is below {contrast:g}",
        DUPLICATES: "have the same bytes as another new picture; one of them is used",
    }
    faults: Faults = {check: {} for check in descriptions}
    numbers = {name: number for number, name in enumerate(class_names)}
    good, contradicted, num_judged = list[Picture](), list[str](), 0
    placed = _check_names(arrival, settings, class_names, faults)
    for pictures, images in _decode(arrival, placed, spec, settings, faults, fit):
        good += pictures
        if classify is not None:
            probabilities = classify(images)
            labels = np.array([numbers.get(picture.label, -1) for picture in pictures])
            wrong = (labels >= 0) & (probabilities.argmax(1) != labels)
            wrong &= probabilities.max(1) >= settings.confidence
            contradicted += [picture.name for picture, is_wrong in zip(pictures, wrong) if is_wrong]
            num_judged += int((labels >= 0).sum())
    kept, layout = _arrange(arrival, good)
    bad = {
        picture: reason
        for check, found in faults.items()
        if check != DUPLICATES
        for picture, reason in found.items()
    }
    total, few = len(arrival.fresh), len(kept) < settings.minimum_new
    doubtful = (
        "have a label that the champion contradicts with a probability of at least "
        f"{100 * settings.confidence:g} % (it can be wrong)"
    )
    unread = (
        f"changed recently: {arrival.unsettled:,} pictures; "
        f"with a format or name that is not read: {arrival.passed_over:,}"
    )
    number = f"{len(kept):,} good new pictures; {settings.minimum_new:,} are needed"
    max_shift = 1.0 if settings.max_class_imbalance is None else settings.max_class_imbalance
    findings = [
        *(_finding(check, descriptions[check], found, total) for check, found in faults.items()),
        Finding("not looked at", "fine", unread),
        _limited("bad pictures", len(bad), total, settings.max_bad_fraction, "are quarantined"),
        _limited(
            "labels", len(contradicted), num_judged, settings.max_label_disagreement, doubtful, contradicted
        ),
        _balance(arrival, kept, max_shift),
        layout,
        Finding("number", "wait" if few else "fine", number),
    ]
    refused = "; ".join(finding.sentence for finding in findings if finding.level == "refuse")
    used = {picture.sha256 for picture in good}
    quarantined = {
        picture.key: f"{picture.name}: {reason}"
        for picture, reason in bad.items()
        if picture.sha256 not in used
    }
    return Quality(findings, kept, quarantined, refused, few)


def _check_names(
    arrival: Arrival, settings: QualitySettings, class_names: Sequence[str], faults: Faults
) -> list[Picture]:
    """The fresh pictures without a fault in name or class; the others are added to ``faults``."""
    accepted = [*arrival.accepted.values(), *arrival.twins]
    names, splits = {picture.name for picture in accepted}, {folders(picture.name)[0] for picture in accepted}
    classes = defaultdict(set, {digest: {picture.label} for digest, picture in arrival.accepted.items()})
    placed, first = list[Picture](), dict[str, Picture]()
    for picture in arrival.fresh:
        label, split = picture.label, folders(picture.name)[0]
        reason, is_new = "", bool(class_names) and label not in class_names
        if not label:
            reason = "is not in a class folder"
        elif is_new and not settings.new_classes:
            reason = f"'{label}' is not a known class"
        elif splits and split not in splits:
            reason = (
                f"no accepted picture is in a folder '{split}'"
                if split
                else "is not in the folder of a split"
            )
        if reason:
            faults["class folder"][picture] = reason
        elif picture.name in names:
            faults["same name"][picture] = "the accepted picture of this name has other bytes"
        else:
            classes[picture.sha256].add(label)
            placed.append(picture)
    for picture in placed:
        if len(labels := classes[picture.sha256]) > 1:
            faults["one class"][picture] = f"the same bytes are in the classes {' and '.join(sorted(labels))}"
        elif first.setdefault(picture.sha256, picture) is not picture:
            faults[DUPLICATES][picture] = f"has the same bytes as {first[picture.sha256].name}"
    return list(first.values())


def _decode(
    arrival: Arrival,
    pictures: list[Picture],
    spec: DataSpec,
    settings: QualitySettings,
    faults: Faults,
    fit: Fit,
) -> Iterator[tuple[list[Picture], np.ndarray]]:
    """Chunks of good pictures and their images (n, C, H, W); the others are added to ``faults``."""

    def prepare(picture: Picture) -> np.ndarray | tuple[str, str]:
        try:
            data = read_file(arrival.place, picture.name)
            image = decode(data, spec.channels, spec.size, fit)
        except ValueError as error:
            return "readable", str(error)
        side = min(Image.open(io.BytesIO(data), formats=FORMATS).size)
        if side < settings.minimum_side_pixels:
            return "size", f"its shorter side has {side} pixels"
        contrast = (image.mean(axis=0) / 255).std()
        if contrast < settings.minimum_contrast:
            return "contrast", f"its standard deviation is {contrast:.4f}"
        return image

    size = chunk_size(spec.channels, spec.size)
    for chunk in (pictures[start : start + size] for start in range(0, len(pictures), size)):
        good: dict[Picture, np.ndarray] = {}
        for picture, found in zip(chunk, spread(prepare, chunk)):
            if isinstance(found, tuple):
                check, reason = found
                faults[check][picture] = reason
            else:
                good[picture] = found
        if good:
            yield list(good), np.stack(list(good.values()))


def _arrange(arrival: Arrival, good: list[Picture]) -> tuple[list[Picture], Finding]:
    """The pictures that the stages can use; the others wait for more of their class."""
    accepted = [*arrival.accepted.values(), *arrival.twins]
    counts = Counter(folders(picture.name) for picture in (*accepted, *good))
    splits, classes = {split for split, _ in counts}, {label for _, label in counts}
    least = {split: MIN_IMAGES if split in ("", "train") and len(splits) < 3 else 1 for split in splits}
    ready = {
        label for label in classes if all(counts[split, label] >= number for split, number in least.items())
    }
    kept = [picture for picture in good if picture.label in ready and len(ready) > 1]
    try:
        if kept:
            arrange([picture.name for picture in (*accepted, *kept)], [], where="")
    except BadInput as error:
        return kept, Finding("layout", "refuse", f"with them the folder of accepted pictures {error.what}")
    waiting = f"{len(good) - len(kept):,} good new pictures"
    sentence = f"{waiting} wait for more pictures of their class, or for a second class"
    return kept, Finding("layout", "fine", sentence)


def _finding(check: str, description: str, found: dict[Picture, str], total: int) -> Finding:
    example = next((f"; {picture.name}: {reason}" for picture, reason in found.items()), "")
    sentence = f"{len(found):,} of {total:,} new pictures {description}{example}"
    names = tuple(picture.name for picture in found)[:MAX_NAMES]
    return Finding(check, "quarantine" if found and check != DUPLICATES else "fine", sentence, names)


def _limited(
    check: str, count: int, total: int, limit: float, description: str, names: Sequence[str] = ()
) -> Finding:
    if not total:
        return Finding(check, "fine", "not measured: no pictures, or no champion that knows these classes")
    share = f"{count:,} of {total:,} new pictures ({100 * count / total:.1f} %)"
    sentence = f"{share} {description}; {100 * limit:g} % are allowed"
    return Finding(check, "refuse" if count / total > limit else "fine", sentence, tuple(names[:MAX_NAMES]))


def _balance(arrival: Arrival, kept: list[Picture], limit: float) -> Finding:
    """Total variation distance between the class shares of the accepted data without and with ``kept``."""
    before = Counter(picture.label for picture in (*arrival.accepted.values(), *arrival.twins))
    if not before:
        return Finding("class balance", "fine", "not measured: no picture is accepted yet")
    after = before + Counter(picture.label for picture in kept)
    shift = sum(abs(after[label] / after.total() - before[label] / before.total()) for label in after) / 2
    what = f"{len(kept):,} new pictures shift the data's class shares by {100 * shift:.1f} %"
    sentence = f"{what}; {100 * limit:g} % are allowed"
    return Finding("class balance", "refuse" if shift > limit else "fine", sentence)
