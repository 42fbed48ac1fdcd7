"""The report of a retraining: an HTML page, a summary in Markdown for MLflow, the result for the terminal."""

import base64
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape

from pipeline.evaluation import glossary
from pipeline.files import write_text
from pipeline.retraining.gates import Numbers, find
from pipeline.retraining.journal import RetrainingRun, Verdict

TEMPLATES = Environment(
    loader=ChoiceLoader([PackageLoader(f"pipeline.{name}", ".") for name in ("retraining", "evaluation")]),
    autoescape=select_autoescape(),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write(run: RetrainingRun, folder: Path) -> Path:
    """Write ``folder``/<name of the retraining>.html, one self-contained page."""
    picture, path, foreign = folder / f"{run.name}-foreign.png", folder / f"{run.name}.html", ""
    if picture.is_file():
        foreign = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    write_text(path, TEMPLATES.get_template("retraining.html").render(run=run, rows=_rows, foreign=foreign))
    return path


def markdown(run: RetrainingRun) -> str:
    """A summary in Markdown."""
    return TEMPLATES.get_template("retraining.md").render(run=run)


def result(run: RetrainingRun, page: Path) -> str:
    """The decision, and the commands that promote refused models by hand and then add their pictures."""
    return TEMPLATES.get_template("retraining.txt").render(run=run, page=page)


def _rows(verdict: Verdict) -> list[tuple[str, str, str]]:
    """Title, challenger's value and champion's value of each measure with an interval."""
    ours, theirs = verdict.numbers, verdict.before_numbers
    names = [name for name in ours if f"{name}_low" in ours]
    return [(glossary.measure(name).title, _format(name, ours), _format(name, theirs)) for name in names]


def _format(name: str, numbers: Numbers) -> str:
    show, found = glossary.measure(name).show, find(numbers, name)
    return f"{show(found.value)} ({show(found.low)} – {show(found.high)})" if found else ""
