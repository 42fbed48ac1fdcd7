"""The report of a retraining: an HTML page, and a summary in Markdown for MLflow."""

import base64
from pathlib import Path

from pipeline.estimate import Estimate
from pipeline.evaluation import glossary, page
from pipeline.retraining.journal import RetrainingRun, Verdict


def write(run: RetrainingRun, folder: Path) -> Path:
    """Write ``folder``/<name of the retraining>.html, one self-contained page."""
    picture, foreign = folder / f"{run.name}-foreign.png", ""
    if picture.is_file():
        foreign = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    rows = {verdict.model: _rows(verdict) for verdict in run.verdicts}
    path = folder / f"{run.name}.html"
    page.write(path, __package__, "retraining.html", run=run, rows=rows, foreign=foreign)
    return path


def text(run: RetrainingRun) -> str:
    """A summary in Markdown."""
    lines = [f"**{run.decision}**: {run.explanation}", ""]
    lines += [f"Reason for the retraining: {'; '.join(run.reasons)}."]
    lines += [f"- {finding['check']}: {finding['sentence']}" for finding in run.quality]
    lines += [f"- drift: {run.drift['said']}"] if run.drift else []
    for verdict in run.verdicts:
        lines += ["", f"`{verdict.model}` {verdict.before or 'none'} → {verdict.version}: {verdict.reason}"]
        lines += [
            f"- {'ok' if gate['passed'] else '**FAIL**'} {gate['name']}: {gate['finding']}"
            for gate in verdict.gates
        ]
        lines += [f"- to promote it by hand: `{verdict.promote_command}`"] if verdict.refused else []
    return "\n".join(lines)


def manual_commands(run: RetrainingRun) -> str:
    """The commands that promote the refused models and add their pictures; '' if no model was refused."""
    commands = [verdict.promote_command for verdict in run.verdicts if verdict.refused]
    if not commands:
        return ""
    lines = ["to promote by hand what was refused:", *commands]
    if run.decision == "refused" and run.fresh:
        comment = f"afterwards: adds its {len(run.fresh):,} pictures to the data"
        lines.append(f"darkroom retrain --readmit '{run.refusal}'  # {comment}")
    return "\n  ".join(lines) + "\n"


def _rows(verdict: Verdict) -> list[tuple[str, str, str]]:
    """Title, challenger's value and champion's value of each measure with an interval."""
    ours, theirs = Estimate.read(verdict.numbers), Estimate.read(verdict.before_numbers)
    return [
        (glossary.measure(name).title, _format(name, ours), _format(name, theirs))
        for name, estimate in ours.items()
        if estimate.low is not None
    ]


def _format(name: str, numbers: dict[str, Estimate]) -> str:
    if name not in numbers:
        return ""
    measure = glossary.measure(name)
    return f"{measure.show(numbers[name].value)} ({measure.interval(numbers[name])})"
