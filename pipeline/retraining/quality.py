"""Checks of new pictures. A picture is kept, waits or is quarantined."""

import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import torch
from PIL import Image

from pipeline.core.task import DataSpec, Task
from pipeline.data.class_folders import ONE_CLASS
from pipeline.data.collection import bit_depth
from pipeline.data.decoding import Decoder, chunk_size
from pipeline.data.folders import reader
from pipeline.data.images import FORMATS, decode
from pipeline.data.reading import arrange
from pipeline.data.settings import DataSettings
from pipeline.data.splits import MIN_IMAGES
from pipeline.errors import BadInput
from pipeline.retraining.champion_challenger import Champion, Expected, load
from pipeline.retraining.incoming import Arrival, Picture, spread
from pipeline.retraining.settings import QualitySettings

MAX_NAMES = 20  # pictures that a finding names
DUPLICATES = "duplicates"  # the check that quarantines none
CHECKS = {  # of single pictures, with what is wrong with them; {0}: the settings
    "class folder": "are not in the folder of a known class",
    "same name": "have the name of an accepted picture but other bytes; these are never overwritten",
    "one class": "have the same bytes as a picture of another class",
    "readable": "cannot be decoded",
    "size": "have a side of fewer than {0.minimum_side_pixels} pixels",
    "contrast": (
        "are nearly constant: the standard deviation of their grey values is below {0.minimum_contrast:g}"
    ),
    DUPLICATES: "have the same bytes as another new picture; one of them is used",
}
# uint8 images (N, C, H, W) -> probabilities (N, classes)
Classify = Callable[[np.ndarray], np.ndarray]
Faults = dict[Picture, tuple[str, str]]  # check and reason


@dataclass(frozen=True)
class Finding:
    """The result of a check; ``names``: the first pictures that it concerns."""

    check: str
    level: Literal["fine", "wait", "quarantine", "refuse"]
    sentence: str
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Quality:
    """The findings of all checks.

    Pictures that are neither kept nor quarantined are checked again by the next retraining.
    """

    findings: Sequence[Finding] = ()
    kept: Sequence[Picture] = ()  # good, sorted by name
    quarantined: dict[str, str] = field(default_factory=dict)  # by key: name and reason
    waits: bool = False  # whether the good pictures are too few for a training

    @property
    def usable(self) -> Sequence[Picture]:
        """The pictures to train on; none while there are too few."""
        return () if self.waits else self.kept

    @property
    def refused(self) -> str:
        """Why the delivery as a whole cannot be used; '' if it can."""
        return "; ".join(finding.sentence for finding in self.findings if finding.level == "refuse")


def check(
    arrival: Arrival,
    settings: QualitySettings,
    data: DataSettings,
    champion: Champion | None,
    device: str,
) -> Quality:
    """Check the fresh pictures; the classifier ``champion`` checks their labels. Prints what it finds."""
    if not arrival.fresh:
        return Quality()
    known = arrange([picture.name for picture in arrival.accepted], [], data).class_names
    spec = DataSpec.labelled_images(1 if data.color == "grey" else 3, data.image_size, len(known))
    task = load(champion, Expected.of_spec(spec, known), device)
    quality = examine(arrival, settings, spec, known, task and partial(_probabilities, task), data)
    attention = [finding for finding in quality.findings if finding.level != "fine"]
    for finding in attention:
        print(f"  {finding.check}: {finding.sentence}")
    count = len(quality.findings)
    result = f"{count - len(attention)} of {count} checks found nothing"
    print(f"  {len(arrival.fresh):,} new pictures were checked: {result}")
    return quality


def examine(
    arrival: Arrival,
    settings: QualitySettings,
    spec: DataSpec,
    class_names: Sequence[str],
    classify: Classify | None,
    data: DataSettings | None = None,
) -> Quality:
    """Check the fresh pictures, decoded as for training, one chunk in memory at a time.

    ``class_names`` are the columns of ``classify`` (the champion). Other classes than those of the accepted
    pictures are faults, if there are any.
    """
    data = data or DataSettings()
    accepted, fresh = ([picture.name for picture in some] for some in (arrival.accepted, arrival.fresh))
    bits = bit_depth(data, (arrival.accepted_place, accepted), (arrival.place, fresh))
    decoder = Decoder(arrival.place, spec.channels, spec.size, data.fit, bits)
    faults: Faults = {}
    good, contradicted, num_judged = list[Picture](), list[str](), 0
    placed = _check_names(arrival, settings, faults)
    for pictures, images in _decode(decoder, placed, settings, faults):
        good += pictures
        for picture, row in zip(pictures, classify(images)) if classify else ():
            if picture.label in class_names:
                num_judged += 1
                if class_names[row.argmax()] != picture.label and row.max() >= settings.confidence:
                    contradicted.append(picture.name)
    kept, layout = _arrange(arrival, good, data)
    bad = {picture: reason for picture, (check, reason) in faults.items() if check != DUPLICATES}
    total, few = len(arrival.fresh), len(kept) < settings.minimum_new
    unread = f"with a format or name that is not read: {arrival.passed_over:,}"
    doubtful = (
        "have a label that the champion contradicts with a probability of at least "
        f"{100 * settings.confidence:g} % (it can be wrong)"
    )
    label_limit, number = settings.max_label_disagreement, f"{settings.minimum_new:,} are needed"
    findings = [
        *(_finding(check, faults, settings, total) for check in CHECKS),
        Finding("not looked at", "fine", f"changed recently: {arrival.unsettled:,} pictures; {unread}"),
        _limited("bad pictures", len(bad), total, settings.max_bad_fraction, "are quarantined"),
        _limited("labels", len(contradicted), num_judged, label_limit, doubtful, contradicted),
        _balance(arrival, kept, settings.max_class_imbalance),
        layout,
        Finding("number", "wait" if few else "fine", f"{len(kept):,} good new pictures; {number}"),
    ]
    used = {picture.sha256 for picture in good}
    unused = {picture: reason for picture, reason in bad.items() if picture.sha256 not in used}
    quarantined = {picture.key: f"{picture.name}: {reason}" for picture, reason in unused.items()}
    return Quality(findings, kept, quarantined, few)


def _check_names(arrival: Arrival, settings: QualitySettings, faults: Faults) -> list[Picture]:
    """The fresh pictures without a fault in name or class; the others are added to ``faults``."""
    names = {picture.name for picture in arrival.accepted}
    known = {picture.label for picture in arrival.accepted}
    classes = defaultdict[str, set[str]](set)  # by SHA-256
    for picture in arrival.accepted:
        classes[picture.sha256].add(picture.label)
    example = f", as '{arrival.accepted[0].name}' is" if arrival.accepted else ""
    placed, first = list[Picture](), dict[str, Picture]()
    for picture in arrival.fresh:
        label, reason = picture.label, ""
        if not label:
            reason = f"is not in a class folder{example}"
        elif known and label not in known and not settings.new_classes:
            reason = f"'{label}' is not a known class"
        if reason:
            faults[picture] = "class folder", reason
        elif picture.name in names:
            faults[picture] = "same name", "the accepted picture of this name has other bytes"
        else:
            classes[picture.sha256].add(label)
            placed.append(picture)
    for picture in placed:
        if len(labels := classes[picture.sha256]) > 1:
            reason = f"the same bytes are in the classes {' and '.join(sorted(labels))}"
            faults[picture] = "one class", reason
        elif first.setdefault(picture.sha256, picture) is not picture:
            faults[picture] = DUPLICATES, f"has the same bytes as {first[picture.sha256].name}"
    return list(first.values())


def _decode(
    decoder: Decoder, pictures: list[Picture], settings: QualitySettings, faults: Faults
) -> Iterator[tuple[list[Picture], np.ndarray]]:
    """Chunks of good pictures and their images (n, C, H, W); the others are added to ``faults``."""
    channels, size, read = decoder.channels, decoder.size, reader(decoder.path)

    def prepare(picture: Picture) -> np.ndarray | tuple[str, str]:
        try:
            data = read(picture.name)
            image = decode(data, channels, size, decoder.fit, decoder.bits)
        except ValueError as error:
            return "readable", str(error)
        side = min(Image.open(io.BytesIO(data), formats=FORMATS).size)
        if side < settings.minimum_side_pixels:
            return "size", f"its shorter side has {side} pixels"
        contrast = (image.mean(axis=0) / 255).std()
        if contrast < settings.minimum_contrast:
            return "contrast", f"its standard deviation is {contrast:.4f}"
        return image

    step = chunk_size(channels, size)
    for start in range(0, len(pictures), step):
        chunk, good = pictures[start : start + step], dict[Picture, np.ndarray]()
        for picture, found in zip(chunk, spread(prepare, chunk)):
            if isinstance(found, tuple):
                faults[picture] = found
            else:
                good[picture] = found
        if good:
            yield list(good), np.stack(list(good.values()))


def _arrange(arrival: Arrival, good: list[Picture], settings: DataSettings) -> tuple[list[Picture], Finding]:
    """The pictures that the stages can use; the others wait for more of their class."""
    pictures = [*arrival.accepted, *good]
    counts = Counter((picture.split, picture.label) for picture in pictures)
    splits, classes = {split for split, _ in counts}, {label for _, label in counts}
    divided = {None, "train"} if len(splits) < 3 else set[str]()
    least = {split: MIN_IMAGES if split in divided else 1 for split in splits}
    ready = {
        label for label in classes if all(counts[split, label] >= number for split, number in least.items())
    }
    # The first delivery waits for a second class, unless its pictures are not in class folders.
    enough = len(ready) > 1 or bool(arrival.accepted) or ready == {ONE_CLASS}
    kept = [picture for picture in good if picture.label in ready and enough]
    try:
        if kept:
            names = [picture.name for picture in (*arrival.accepted, *kept)]
            arrange(names, [], settings).refuse(where="")
    except BadInput as error:
        return kept, Finding("layout", "refuse", f"with them the folder of accepted pictures {error.what}")
    waiting = f"{len(good) - len(kept):,} good new pictures"
    sentence = f"{waiting} wait for more pictures of their class, or for a second class"
    return kept, Finding("layout", "fine", sentence)


def _finding(check: str, faults: Faults, settings: QualitySettings, total: int) -> Finding:
    found = {picture.name: reason for picture, (failed, reason) in faults.items() if failed == check}
    example = next((f"; {name}: {reason}" for name, reason in found.items()), "")
    sentence = f"{len(found):,} of {total:,} new pictures {CHECKS[check].format(settings)}{example}"
    level: Literal["fine", "quarantine"] = "quarantine" if found and check != DUPLICATES else "fine"
    return Finding(check, level, sentence, tuple(found)[:MAX_NAMES])


def _limited(
    check: str, count: int, total: int, limit: float, description: str, names: Sequence[str] = ()
) -> Finding:
    if not total:
        return Finding(check, "fine", "not measured: no pictures, or no champion that knows these classes")
    share = f"{count:,} of {total:,} new pictures ({100 * count / total:.1f} %)"
    sentence = f"{share} {description}; {100 * limit:g} % are allowed"
    return Finding(check, "refuse" if count / total > limit else "fine", sentence, tuple(names[:MAX_NAMES]))


def _balance(arrival: Arrival, kept: list[Picture], limit: float | None) -> Finding:
    """Total variation distance between the class shares of the accepted data without and with ``kept``."""
    before = Counter(picture.label for picture in arrival.accepted)
    if not before:
        return Finding("class balance", "fine", "not measured: no picture is accepted yet")
    after, limit = before + Counter(picture.label for picture in kept), 1.0 if limit is None else limit
    shift = sum(abs(after[label] / after.total() - before[label] / before.total()) for label in after) / 2
    what = f"{len(kept):,} new pictures shift the data's class shares by {100 * shift:.1f} %"
    sentence = f"{what}; {100 * limit:g} % are allowed"
    return Finding("class balance", "refuse" if shift > limit else "fine", sentence)


def _probabilities(task: Task, images: np.ndarray) -> np.ndarray:
    """Probabilities (N, classes) of uint8 images (N, C, H, W)."""
    with torch.inference_mode():
        logits = task.classify(torch.from_numpy(images).to(task.device).float() / 255)
    assert logits is not None
    return logits.double().softmax(dim=1).cpu().numpy()
