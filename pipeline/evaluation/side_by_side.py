"""Tables and a page that show several runs side by side, and the spread over seeds."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.table import Table

from pipeline.evaluation import glossary
from pipeline.files import write_text
from pipeline.tracking.run_comparison import Compared, differing, numbers, spread

PARTS = ("_low", "_high", "_floor")


@dataclass(frozen=True)
class Row:
    """One measure of all runs."""

    title: str
    better: str
    cells: list[str]  # empty for a run without this measure
    best: set[int]  # columns with the best value


def rows(compared: list[Compared]) -> list[Row]:
    """A row for each measure that at least one run has, with 95 % intervals."""
    measured, _ = numbers(compared)
    names = dict.fromkeys(name for one in measured for name in one if not name.endswith(PARTS))
    return [_row(name, measured) for name in names]


def table(compared: list[Compared]) -> Table:
    """The table for the terminal: measures, then the params that differ."""
    shown = Table("", *(run.title for run in compared), box=None, header_style="bold")
    for row in rows(compared):
        cells = [f"[bold]{cell}[/]" if index in row.best else cell for index, cell in enumerate(row.cells)]
        shown.add_row(f"{row.title} {_arrow(row.better)}", *cells)
    for name, values in differing(compared).items():
        shown.add_row(f"[dim]{name}[/]", *values)
    return shown


def write_page(compared: list[Compared], path: Path) -> None:
    """Write one self-contained page: measures, last sample grids, params that differ."""
    loader = PackageLoader("pipeline.evaluation", ".")
    templates = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    _, same_protocol = numbers(compared)
    note = "All were measured by the same protocol."
    if not same_protocol:
        note = "They were measured by different protocols: compare with care."
    pictures = [(run.title, base64.b64encode(run.picture).decode()) for run in compared if run.picture]
    page = templates.get_template("side_by_side.html").render(
        titles=[(run.title, run.run_id) for run in compared],
        note=note,
        rows=rows(compared),
        pictures=[(title, f"data:image/png;base64,{picture}") for title, picture in pictures],
        params=list(differing(compared).items()),
    )
    write_text(path, page)


def seed_table(by_seed: Mapping[int, Compared]) -> Table:
    """A table of mean, standard deviation and single values of each measure over the seeds."""
    shown = Table("", "mean ± std", *(f"seed {seed}" for seed in by_seed), box=None, header_style="bold")
    for name, (mean, deviation, values) in seed_summary(by_seed).items():
        measure = glossary.measure(name)
        summary = f"{measure.show(mean).removesuffix(measure.suffix)} ± {measure.show(deviation)}"
        title = f"{measure.title} {_arrow(measure.better)}"
        shown.add_row(title, summary, *(measure.show(value) for value in values))
    return shown


def seed_summary(by_seed: Mapping[int, Compared]) -> dict[str, tuple[float, float, list[float]]]:
    """Mean, standard deviation and values of each measure that all seeds have."""
    measured, _ = numbers(list(by_seed.values()))
    names = [
        name for name in measured[0] if not name.endswith(PARTS) and all(name in other for other in measured)
    ]
    values = {name: [other[name] for other in measured] for name in names}
    return {name: (*spread(found), found) for name, found in values.items()}


def _row(name: str, measured: list[Mapping[str, float]]) -> Row:
    measure = glossary.measure(name)
    cells = []
    for run in measured:
        value, low, high = run.get(name), run.get(f"{name}_low"), run.get(f"{name}_high")
        cell = "" if value is None else measure.show(value)
        if value is not None and low is not None and high is not None:
            cell += f" ({measure.show(low).removesuffix(measure.suffix)} – {measure.show(high)})"
        cells.append(cell)
    known = {index: run[name] for index, run in enumerate(measured) if name in run}
    top = (max if measure.better == "higher" else min)(known.values())
    best = {index for index, value in known.items() if value == top}
    if not measure.better or len(best) == len(known):
        best = set()
    return Row(measure.title, measure.better, cells, best)


def _arrow(better: str) -> str:
    return {"higher": "↑", "lower": "↓"}.get(better, "")
