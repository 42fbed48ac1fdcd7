"""The report of a retraining: an HTML page, a summary in Markdown for MLflow, the result for the terminal."""

import base64
from pathlib import Path

from pipeline.estimate import Estimate
from pipeline.evaluation import glossary, page
from pipeline.retraining.gates import Numbers
from pipeline.retraining.journal import RetrainingRun, Verdict


def write(run: RetrainingRun, folder: Path) -> Path:
    """Write ``folder``/<name of the retraining>.html, one self-contained page."""
    picture, target, foreign = folder / f"{run.name}-foreign.png", folder / f"{run.name}.html", ""
    if picture.is_file():
        foreign = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    page.write(target, __package__, "retraining.html", run=run, rows=_rows, foreign=foreign)
    return target


def markdown(run: RetrainingRun) -> str:
    """A summary in Markdown."""
    return page.render(__package__, "retraining.md", run=run)


def result(run: RetrainingRun, report: Path) -> str:
    """The decision, and the commands that promote refused models by hand and then add their pictures."""
    return page.render(__package__, "retraining.txt", run=run, page=report)


def _rows(verdict: Verdict) -> list[tuple[str, str, str]]:
    """Title, challenger's value and champion's value of each measure with an interval."""
    ours, theirs = Estimate.read(verdict.numbers), Estimate.read(verdict.before_numbers)
    names = [name for name, estimate in ours.items() if estimate.low is not None]
    return [(glossary.measure(name).title, _format(name, ours), _format(name, theirs)) for name in names]


def _format(name: str, numbers: Numbers) -> str:
    measure, found = glossary.measure(name), numbers.get(name)
    return f"{measure.show(found.value)} ({measure.interval(found)})" if found else ""
