"""Compares the results of the working tree with a baseline, and writes the comparison as Markdown."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipeline.core import model_files
from pipeline.environment import Environment
from pipeline.errors import BadInput
from pipeline.estimate import Estimate
from pipeline.evaluation import glossary, page
from pipeline.evaluation.measure import Measure
from pipeline.files import atomic_copy, read_json
from pipeline.params import PARAMS, read_file, read_section
from pipeline.pull_request.baseline import DETAILS, Baseline, Results, of_champions, of_revision, results_in
from pipeline.retraining.gates import Facts, Gate, GateSettings, compare, judge
from pipeline.tracking.dvc_lock import MANIFEST, DvcLock
from pipeline.tracking.rerun import as_text, difference

CHAMPION = "champion"  # --against
BETTER, WORSE, SAME = "better", "worse", "no difference that the intervals show"
INCOMPARABLE = "not comparable"
MAX_ROWS = 40  # of a table; GitHub takes comments of 65,536 characters
MAX_TEXT = 60  # characters of a value
PICTURES, SAFE = Path("plots/pictures"), ":/?&=%+~@"  # characters of a URL that are not escaped


@dataclass(frozen=True)
class Row:
    """A measure of a model, here and there. ``title``, ``here`` and ``there`` are for display."""

    title: str
    here: str
    there: str
    verdict: str


@dataclass(frozen=True)
class Compared:
    """A model, here and there. ``why``: why both cannot be compared; '' if they can."""

    name: str
    state: str  # changed, unchanged, only here, only there
    rows: list[Row]
    gates: list[Gate]
    why: str = ""

    def titles(self, verdict: str) -> list[str]:
        """The measures with this verdict."""
        return [row.title for row in self.rows if row.verdict == verdict]

    @property
    def failed(self) -> list[Gate]:
        """The gates that it does not pass."""
        return [gate for gate in self.gates if not gate.passed]

    @property
    def shown(self) -> list[Row]:
        """The rows in which something is to be seen."""
        return [row for row in self.rows if row.verdict != SAME and (row.here or row.there)]


@dataclass(frozen=True)
class Picture:
    """An image of a model: addresses here and there; '' if there is none."""

    model: str
    kind: str
    here: str
    there: str


def write(environment: Environment, against: str, folder: Path | None = None, address: str = "") -> str:
    """The report on the working tree, in Markdown, against a git revision or "champion".

    The pictures of both sides are copied into ``folder``, and linked at the URL ``address``. Without it the
    links lead to a folder of this name, and without that to plots/pictures. Raises ``BadInput`` if one side
    has no results.
    """
    root = environment.root
    ours = results_in((root / DETAILS).read_text(encoding="utf-8")) if (root / DETAILS).is_file() else {}
    if not ours:
        raise BadInput("no results here", where=DETAILS, remedy="dvc repro, or git checkout -- metrics")
    baseline = of_champions(environment, ours) if against == CHAMPION else of_revision(root, against)
    lock, settings = DvcLock(root), read_section("gates", GateSettings, root / PARAMS)
    compared = [
        _compared(root, name, ours.get(name), baseline, settings) for name in {**ours, **baseline.results}
    ]
    changed = {model.name for model in compared if model.state in ("changed", "only here")}
    stale = [problem.path for problem in lock.stale(read_file(root / PARAMS)) if problem.found]
    settings_changed = difference(baseline.params, baseline.now)
    return page.render(
        __package__,
        "report.md",
        baseline=baseline,
        models=compared,
        verdicts=(BETTER, WORSE),
        stale=stale,
        params=[
            (
                change.key,
                *(
                    _text(side[change.key]) if change.key in side else "not set"
                    for side in (baseline.params, baseline.now)
                ),
            )
            for change in settings_changed
        ],
        data=_data(lock, baseline.outputs or {}),
        pictures=_pictures(root, lock, changed, baseline.outputs or {}, folder, address),
        max_rows=MAX_ROWS,
    )


def verdict(name: str, ours: Estimate, theirs: Estimate, settings: GateSettings) -> str:
    """Whether a measure is better or worse by more than the noise of both 95 % intervals.

    It is empty for a measure that has no direction or no interval.
    """
    if not glossary.measure(name).better or ours.low is None or theirs.low is None:
        return ""
    gain, noise = compare(name, ours, theirs, settings)
    return BETTER if gain > noise else WORSE if gain < -noise else SAME


def _compared(
    root: Path, name: str, ours: Results | None, baseline: Baseline, settings: GateSettings
) -> Compared:
    theirs = baseline.results.get(name)
    if ours is None:
        return Compared(name, "only there", [], [])
    (protocol,) = ours.numbers
    numbers, before = ours.numbers[protocol], theirs.numbers.get(protocol) if theirs else None
    if before == numbers:
        return Compared(name, "unchanged", [], [])
    why = ""
    if theirs and before is None:
        keys = theirs.protocol.keys() & ours.protocol.keys() if theirs.numbers else ()
        other = sorted(key for key in keys if theirs.protocol[key] != ours.protocol[key])
        why = "not measured by the same protocol" + f" (other: {', '.join(other)})" * bool(other)
    rows = []
    for quantity, estimate in numbers.items():
        past = (before or [{}, *theirs.numbers.values()][-1] if theirs else {}).get(quantity)
        found = INCOMPARABLE if why else verdict(quantity, estimate, past, settings) if past else "only here"
        measure = glossary.measure(quantity)
        if measure.headline or found in (BETTER, WORSE, SAME):
            here, there = (_shown(measure, each) for each in (estimate, past))
            rows.append(Row(f"{measure.title} {measure.arrow}", here, there, found))
    weights, times = root / "models" / name / model_files.WEIGHTS, root / "history" / name / "times.json"
    seconds = read_json(times).get("total") if times.is_file() else None
    facts = Facts(
        ours.protocol["test_examples"],
        weights.stat().st_size / 1e6 if weights.is_file() else None,
        seconds and seconds / 3600,
        incomparable=why,
    )
    gates = judge(ours.numbers, theirs.numbers if theirs else None, settings, facts)
    return Compared(name, "changed" if theirs else "only here", rows, gates, why)


def _shown(measure: Measure, estimate: Estimate | None) -> str:
    """The value with its interval; '' if there is none."""
    interval = measure.interval(estimate) if estimate else ""
    return measure.show(estimate.value) + f" ({interval})" * bool(interval) if estimate else ""


def _text(value: Any) -> str:
    """A value as code within a table of Markdown."""
    text = " ".join(as_text(value).replace("`", "'").split()).replace("|", "\\|")
    return f"`{text[:MAX_TEXT]}{'...' * (len(text) > MAX_TEXT)}`"


def _data(lock: DvcLock, before: Mapping[str, str]) -> list[str]:
    """A line for each data set that differs from that of the baseline; ``before``: its outputs."""
    lines = []
    here = {path: md5 for path, md5 in lock.current.items() if path.startswith("data/processed/")}
    for path in sorted(here | {path: "" for path in before if path.startswith("data/processed/")}):
        if not before or here.get(path) == before.get(path):
            continue
        if path not in here or path not in before:
            lines.append(f"`{path}`: {'new' if path in here else 'removed'}")
            continue
        ours, theirs = (lock.read_json(path, side[path], MANIFEST) for side in (here, before))
        if not ours or not theirs:
            lines.append(f"`{path}`: other content; both manifests are needed for details: dvc fetch")
            continue
        lines.append(f"`{path}`: {'; '.join(_differences(theirs, ours)) or 'other pixels or labels'}")
    return lines


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs between two manifests."""
    found = []
    if before["source"] != after["source"]:
        found.append(f"source {_text(before['source'])} → {_text(after['source'])}")
    for split, entry in after["splits"].items():
        was, now = before["splits"].get(split, {"count": 0})["count"], entry["count"]
        if was != now:
            found.append(f"{split} {was:,} → {now:,}")
    names = [set(side["class_names"]) for side in (before, after)]
    for word, classes in (("new", names[1] - names[0]), ("removed", names[0] - names[1])):
        if classes:
            found.append(f"{word} classes {_text(', '.join(sorted(classes)))}")
    return found


def _pictures(
    root: Path, lock: DvcLock, models: set[str], before: Mapping[str, str], folder: Path | None, address: str
) -> list[Picture]:
    """The first picture of each evaluator of the ``models``. See ``write``."""
    base = quote(address.rstrip("/"), safe=SAFE) or (folder.name if folder else PICTURES.as_posix())
    listing, found = lock.listing("plots", before.get("plots", "")), []
    for name in sorted(models):
        for kind in [next(iter(each.pictures)) for each in glossary.EVALUATORS if each.pictures]:
            file, cached = root / PICTURES / f"{name}-{kind}.png", listing.get(f"pictures/{name}-{kind}.png")
            past = lock.object_path(cached) if cached and folder else None
            if not file.is_file():
                continue
            links = []
            for source, target in ((file, file.name), (past, f"before-{file.name}")):
                known = source is not None and source.is_file()
                links.append(f"{base}/{quote(target)}" if known else "")
                if folder and source and known:
                    atomic_copy(source, folder / target)
            found.append(Picture(name, kind, *links))
    return found
