"""New pictures, their quality, and their drift from the data that the champion knows."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.core import model_files
from pipeline.core.dataset import Dataset
from pipeline.core.task import DataSpec, Task
from pipeline.data import sources
from pipeline.data.decoding import Decoder
from pipeline.data.folders import arrange, list_files
from pipeline.data.settings import DataSettings
from pipeline.environment import Environment
from pipeline.errors import DarkroomError
from pipeline.evaluation import figures
from pipeline.evaluation.distances import BATCH, subset
from pipeline.evaluation.features import FeatureSpace
from pipeline.files import read_json
from pipeline.retraining import champion_challenger, drift, incoming, quality
from pipeline.retraining.champion_challenger import Expected
from pipeline.retraining.drift import DriftSettings
from pipeline.retraining.incoming import Arrival, Picture
from pipeline.retraining.settings import RetrainSettings


@dataclasses.dataclass(frozen=True)
class IntakeReport:
    """The new pictures and their checks; empty without ``retrain.watch``."""

    arrival: Arrival | None = None
    checked: quality.Quality | None = None  # None if there are no new pictures

    @property
    def usable(self) -> list[Picture]:
        """The pictures to train on; none while there are too few."""
        return self.checked.kept if self.checked and not self.checked.waits else []

    @property
    def refused(self) -> str:
        """Why the whole delivery is refused; '' if it is not."""
        return self.checked.refused if self.checked else ""

    @property
    def quarantined(self) -> dict[str, str]:
        """Pictures that cannot be used: reasons by key."""
        return self.checked.quarantined if self.checked else {}

    @property
    def digest(self) -> str:
        """Identifies this version of the data."""
        return self.arrival.digest if self.arrival else ""

    def print_findings(self) -> None:
        """Print the findings that need attention, and a summary."""
        findings = self.checked.findings if self.checked else []
        for finding in findings:
            if finding.level != "fine":
                print(f"  {finding.check}: {finding.sentence}", flush=True)
        if findings and self.arrival:
            fine = sum(finding.level == "fine" for finding in findings)
            result = f"{fine} of {len(findings)} checks found nothing"
            print(f"  {len(self.arrival.fresh):,} new pictures were checked: {result}", flush=True)


def look(
    environment: Environment,
    settings: RetrainSettings,
    data: DataSettings,
    accepted: Path,
    quarantined: dict[str, str],
    champion: Path | None,
    downloads: Path,
) -> IntakeReport:
    """Find and check the pictures at ``retrain.watch`` that are neither ``accepted`` nor ``quarantined``.

    ``champion``: the folder of the champion classifier, which checks the labels.
    """
    if not settings.watch:
        return IntakeReport()
    place = incoming.fetch(settings.watch, settings.repository, environment.root, downloads)
    arrival = incoming.look(place, accepted, quarantined, settings.settle_seconds)
    if not arrival.fresh:
        return IntakeReport(arrival)
    # Without accepted pictures this is empty, and any class is allowed.
    known = tuple(sorted({picture.label for picture in arrival.accepted.values()}))
    spec = DataSpec.labelled_images(1 if data.color == "grey" else 3, data.image_size, len(known))
    classify = None
    if champion and tuple(model_files.read_card(champion)["class_names"]) == known:
        task = champion_challenger.load(champion, environment.torch_device)
        classify = _probabilities(task) if task and task.spec == spec else None
    return IntakeReport(arrival, quality.examine(arrival, settings.quality, spec, known, classify, data.fit))


def expected_data(data: DataSettings, intake: IntakeReport, tree: Path) -> tuple[Expected | None, int | None]:
    """The data on which the worktree ``tree`` will train, and about how many test pictures it will have.

    None: not known yet.
    """
    source = sources.find(data.source)
    channels = {"grey": 1, "rgb": 3}.get(data.color, source.shape[0])
    size = data.image_size or source.shape[1]
    if source.read is not None:
        manifest = tree / "data/processed/images/manifest.json"
        known = read_json(manifest) if manifest.is_file() else {}
        names = tuple(known["class_names"]) if known.get("source") == data.source else None
        return Expected(channels, size, names), None
    place = tree / data.folder
    try:
        if intake.arrival:
            accepted = [*intake.arrival.accepted.values(), *intake.arrival.twins]
            files = [picture.name for picture in (*accepted, *intake.usable)]
        else:
            files = list_files(place)[0]
        layout = arrange(files, [], where=data.folder)
    except (OSError, DarkroomError):  # the stage download reports it
        return None, None
    total = sum(len(members) for members in layout.splits.values())
    num_test = len(layout.splits["test"]) if "test" in layout.splits else round(total * data.test_fraction)
    return Expected(channels, size, layout.class_names), num_test


def measure_drift(
    environment: Environment,
    settings: DriftSettings,
    place: Path,
    fresh: list[Picture],
    processed: Path,
    champion: Path | None,
    page: Path,
) -> dict[str, Any]:
    """Drift of the ``fresh`` pictures in ``place`` from the validation and test pictures in ``processed``.

    Returns JSON. The most unusual new pictures are drawn in the PNG ``page``.
    """
    if champion is None or not (processed / "manifest.json").is_file():
        return _not_measured("there is no champion yet")
    known, card = Dataset.open(processed), model_files.read_card(champion)
    names = list(known.class_names)
    if (names, known.spec) != (card["class_names"], DataSpec.from_json(card["spec"])):
        return _not_measured("the champion knows other classes or sizes")
    task = champion_challenger.load(champion, environment.torch_device)
    if task is None:
        return _not_measured("the champion does not fit the present code")
    space = FeatureSpace.of_classifier(card["name"], task, model_files.digest(champion))
    chosen = [fresh[index] for index in subset(len(fresh), settings.max_samples, 0, "drift")]
    decode = Decoder(
        place, known.spec.channels, known.spec.size, known.manifest["settings"].get("fit", "crop")
    )
    labels = {name: number for number, name in enumerate(names)}

    def chunks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(chosen), BATCH):
            part = chosen[start : start + BATCH]
            images = decode([picture.name for picture in part])[0]
            yield images, np.array([labels.get(picture.label, -1) for picture in part])

    held_out = (
        (rows["image"], rows["label"])
        for split in (known.test, known.validation)
        for rows in split.chunks(BATCH)
    )
    with torch.inference_mode():
        reference, new = drift.observe(held_out, space), drift.observe(chunks(), space)
    found = drift.measure(reference, new, settings, 0, names)
    foreign = [chosen[index].name for index in found.foreign]
    if foreign:
        images = np.stack([decode([name])[0] for name in foreign], axis=1)  # (1, K, C, H, W)
        figures.save_grid(torch.from_numpy(images).float() / 255, page)
    tests = [dataclasses.asdict(test) for test in found.tests]
    return {"said": found.sentence, "alarm": found.alarm, "tests": tests, "foreign": foreign}


def _not_measured(why: str) -> dict[str, Any]:
    return {"said": f"not measured: {why}", "alarm": False, "tests": []}


def _probabilities(task: Task) -> quality.Classify:
    """A function from uint8 images (N, C, H, W) to the probabilities (N, classes) of the classifier."""

    def classify(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits = task.classify(torch.from_numpy(images).to(task.device).float() / 255)
        assert logits is not None
        return logits.double().softmax(dim=1).cpu().numpy()

    return classify
