"""Checks of new pictures: each check gives a sentence with its numbers; each picture is kept, waits, or is
quarantined."""

import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from pipeline.core.task import DataSpec
from pipeline.data.decoding import chunk_size, read_file
from pipeline.data.folders import arrange
from pipeline.data.images import FORMATS, decode
from pipeline.data.splits import MIN_IMAGES
from pipeline.errors import BadInput
from pipeline.retraining.incoming import Arrival, Picture, folders, spread
from pipeline.retraining.settings import QualitySettings

NAMED, DUPLICATES = 20, "duplicates"  # pictures named in a finding; the check that quarantines none
Classify = (
    Callable[[np.ndarray], np.ndarray] | None
)  # uint8 images (N, C, H, W) -> probabilities (N, classes)
Chunks = Iterator[tuple[list[Picture], np.ndarray]]
Aside = dict[str, dict[Picture, str]]  # check -> picture -> reason


@dataclass(frozen=True)
class Finding:
    """The result of a check; ``names``: the first pictures that it concerns."""

    check: str
    level: Literal["fine", "wait", "quarantine", "refuse"]
    sentence: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Quality:
    """The findings of all checks. Pictures that are neither kept nor quarantined are checked again by the
    next retraining."""

    findings: list[Finding]
    kept: list[Picture]  # good, by name
    quarantined: dict[str, str]  # by key, the name and what is wrong
    refused: str  # why the delivery as a whole cannot be used, or an empty string
    waits: bool  # whether the good pictures are too few to train again


def examine(
    arrival: Arrival,
    settings: QualitySettings,
    spec: DataSpec,
    class_names: Sequence[str],
    classify: Classify,
) -> Quality:
    """Check the fresh pictures, decoded as for training, one chunk in memory at a time.

    ``class_names`` are the known classes in the order of the columns that ``classify`` (the champion)
    returns; if there are none, any class is allowed.
    """
    words = {
        "class folder": "are not in the folder of a known class",
        "same name": "have the name of an accepted picture but other bytes; accepted pictures are never overwritten",
        "one class": "have the same bytes as a picture of another class",
        "readable": "cannot be decoded",
        "size": f"have a side of fewer than {settings.minimum_side_pixels} pixels",
        "contrast": f"are nearly constant: the standard deviation of their grey values is below {settings.minimum_contrast:g}",
        DUPLICATES: "have the same bytes as another new picture; one of them is used",
    }
    aside: Aside = {check: {} for check in words}
    good, judged, contradicted, numbers = (
        list[Picture](),
        0,
        list[str](),
        {name: number for number, name in enumerate(class_names)},
    )
    for pictures, images in _decode(
        arrival, _sort(arrival, settings, class_names, aside), spec, settings, aside
    ):
        good += pictures
        if classify is not None:
            probabilities, own = (
                classify(images),
                np.array([numbers.get(picture.label, -1) for picture in pictures]),
            )
            doubted = (
                (own >= 0) & (probabilities.argmax(1) != own) & (probabilities.max(1) >= settings.confidence)
            )
            contradicted += [picture.name for picture, doubt in zip(pictures, doubted) if doubt]
            judged += int((own >= 0).sum())
    kept, layout = _arrange(arrival, good)
    bad = {
        picture: reason
        for check, found in aside.items()
        if check != DUPLICATES
        for picture, reason in found.items()
    }
    doubt = f"have a label that the champion contradicts with a probability of at least {100 * settings.confidence:g} % (it errs too)"
    few, left = len(kept) < settings.minimum_new, f"changed recently: {arrival.unsettled:,} pictures"
    findings = [
        *(_told(check, words[check], found, len(arrival.fresh)) for check, found in aside.items()),
        Finding(
            "not looked at",
            "fine",
            f"{left}; with a format or name that is not read: {arrival.passed_over:,}",
        ),
        _limited("bad pictures", len(bad), len(arrival.fresh), settings.max_bad_fraction, "are quarantined"),
        _limited("labels", len(contradicted), judged, settings.max_label_disagreement, doubt, contradicted),
        _balance(
            arrival, kept, 1.0 if settings.max_class_imbalance is None else settings.max_class_imbalance
        ),
        layout,
        Finding(
            "number",
            "wait" if few else "fine",
            f"{len(kept):,} good new pictures; {settings.minimum_new:,} are needed",
        ),
    ]
    refused, taken = (
        "; ".join(finding.sentence for finding in findings if finding.level == "refuse"),
        {own.sha256 for own in good},
    )
    quarantined = {
        picture.key: f"{picture.name}: {reason}"
        for picture, reason in bad.items()
        if picture.sha256 not in taken
    }
    return Quality(findings, kept, quarantined, refused, few)


def _sort(
    arrival: Arrival, settings: QualitySettings, class_names: Sequence[str], aside: Aside
) -> list[Picture]:
    """The fresh pictures without a fault in name or class; the reasons for the others are added to
    ``aside``."""
    accepted = [*arrival.accepted.values(), *arrival.twins]
    names, splits = {picture.name for picture in accepted}, {folders(picture.name)[0] for picture in accepted}
    classes = defaultdict(set, {digest: {picture.label} for digest, picture in arrival.accepted.items()})
    placed, first = list[Picture](), dict[str, Picture]()
    for picture in arrival.fresh:
        if not picture.label or (
            class_names and picture.label not in class_names and not settings.new_classes
        ):
            aside["class folder"][picture] = (
                f"'{picture.label}' is not a known class" if picture.label else "is not in a class folder"
            )
        elif splits and (split := folders(picture.name)[0]) not in splits:
            aside["class folder"][picture] = (
                f"no accepted picture is in a folder '{split}'"
                if split
                else "is not in the folder of a split"
            )
        elif picture.name in names:
            aside["same name"][picture] = "the accepted picture of this name has other bytes"
        else:
            classes[picture.sha256].add(picture.label)
            placed.append(picture)
    for picture in placed:
        if len(own := classes[picture.sha256]) > 1:
            aside["one class"][picture] = f"the same bytes are in the classes {' and '.join(sorted(own))}"
        elif first.setdefault(picture.sha256, picture) is not picture:
            aside[DUPLICATES][picture] = f"has the same bytes as {first[picture.sha256].name}"
    return list(first.values())


def _decode(
    arrival: Arrival, pictures: list[Picture], spec: DataSpec, settings: QualitySettings, aside: Aside
) -> Chunks:
    """Chunks of readable pictures and their images (n, C, H, W); the reasons for the others are added to
    ``aside``."""

    def prepare(picture: Picture) -> np.ndarray | tuple[str, str]:
        try:
            data = read_file(arrival.place, picture.name)
            image = decode(data, spec.channels, spec.size)
        except ValueError as error:
            return "readable", str(error)
        side, contrast = (
            min(Image.open(io.BytesIO(data), formats=FORMATS).size),
            (image.mean(axis=0) / 255).std(),
        )
        if side < settings.minimum_side_pixels:
            return "size", f"its shorter side has {side} pixels"
        return (
            image
            if contrast >= settings.minimum_contrast
            else ("contrast", f"its standard deviation is {contrast:.4f}")
        )

    size = chunk_size(spec.channels, spec.size)
    for chunk in (pictures[start : start + size] for start in range(0, len(pictures), size)):
        good: dict[Picture, np.ndarray] = {}
        for picture, found in zip(chunk, spread(prepare, chunk)):
            if isinstance(found, tuple):
                aside[found[0]][picture] = found[1]
            else:
                good[picture] = found
        if good:
            yield list(good), np.stack(list(good.values()))


def _arrange(arrival: Arrival, good: list[Picture]) -> tuple[list[Picture], Finding]:
    """The pictures that the stages 'download' and 'preprocess' can use; pictures of a class with too few wait
    for more."""
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
    return kept, Finding(
        "layout",
        "fine",
        f"{len(good) - len(kept):,} good new pictures wait for more pictures of their class, or for a second class",
    )


def _told(check: str, words: str, found: dict[Picture, str], total: int) -> Finding:
    example = next((f"; {picture.name}: {reason}" for picture, reason in found.items()), "")
    sentence = f"{len(found):,} of {total:,} new pictures {words}{example}"
    names = tuple(picture.name for picture in found)[:NAMED]
    return Finding(check, "quarantine" if found and check != DUPLICATES else "fine", sentence, names)


def _limited(
    check: str, count: int, total: int, limit: float, words: str, names: Sequence[str] = ()
) -> Finding:
    if not total:
        return Finding(check, "fine", "not measured: no pictures, or no champion that knows these classes")
    sentence = f"{count:,} of {total:,} new pictures ({100 * count / total:.1f} %) {words}; {100 * limit:g} % are allowed"
    return Finding(check, "refuse" if count / total > limit else "fine", sentence, tuple(names[:NAMED]))


def _balance(arrival: Arrival, kept: list[Picture], limit: float) -> Finding:
    """Total variation distance between the accepted data's class shares without and with the new pictures."""
    before = Counter(picture.label for picture in (*arrival.accepted.values(), *arrival.twins))
    if not before:
        return Finding("class balance", "fine", "not measured: no picture is accepted yet")
    after = before + Counter(picture.label for picture in kept)
    shift = sum(abs(after[label] / after.total() - before[label] / before.total()) for label in after) / 2
    sentence = f"{len(kept):,} new pictures shift the data's class shares by {100 * shift:.1f} %; {100 * limit:g} % are allowed"
    return Finding("class balance", "refuse" if shift > limit else "fine", sentence)
