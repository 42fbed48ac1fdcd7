"""Trainings side by side: a table for the terminal, a page with pictures, and the spread over seeds."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.table import Table

from pipeline.evaluation import glossary
from pipeline.files import write_text
from pipeline.tracking.comparison import Compared, differing, numbers, spread

PARTS = ("_low", "_high", "_floor")


@dataclass(frozen=True)
class Row:
    """One measure of all that are compared: a cell each, empty where it was not measured, and the columns that are best."""

    title: str
    better: str
    cells: list[str]
    best: set[int]


def rows(compared: list[Compared]) -> list[Row]:
    """The measures of any of them, each with its 95 % interval."""
    measured, _ = numbers(compared)
    names = dict.fromkeys(name for one in measured for name in one if not name.endswith(PARTS))
    return [_row(name, measured) for name in names]


def table(compared: list[Compared]) -> Table:
    """What the terminal shows: measures, then the params that differ."""
    shown = Table("", *(one.title for one in compared), box=None, header_style="bold")
    for row in rows(compared):
        cells = [f"[bold]{cell}[/]" if index in row.best else cell for index, cell in enumerate(row.cells)]
        shown.add_row(f"{row.title} {_arrow(row.better)}", *cells)
    for name, values in differing(compared).items():
        shown.add_row(f"[dim]{name}[/]", *values)
    return shown


def write_page(compared: list[Compared], path: Path) -> None:
    """One self-contained page: measures, last sample grids, params that differ."""
    templates = Environment(
        loader=PackageLoader("pipeline.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    _, alike = numbers(compared)
    page = templates.get_template("side_by_side.html").render(
        titles=[(one.title, one.run_id) for one in compared],
        said="One protocol measured all."
        if alike
        else "They were measured by different protocols: compare with care.",
        rows=rows(compared),
        pictures=[
            (one.title, "data:image/png;base64," + base64.b64encode(one.picture).decode())
            for one in compared
            if one.picture
        ],
        params=list(differing(compared).items()),
    )
    write_text(path, page)


def seed_table(by_seed: Mapping[int, Compared]) -> Table:
    """Mean and standard deviation of each measure over the seeds, beside what each seed gave."""
    shown = Table("", "mean ± std", *(f"seed {seed}" for seed in by_seed), box=None, header_style="bold")
    for name, (mean, deviation, values) in seed_summary(by_seed).items():
        measure = glossary.measure(name)
        said = f"{measure.show(mean).removesuffix(measure.suffix)} ± {measure.show(deviation)}"
        shown.add_row(
            f"{measure.title} {_arrow(measure.better)}", said, *(measure.show(value) for value in values)
        )
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
    for one in measured:
        value, low, high = one.get(name), one.get(f"{name}_low"), one.get(f"{name}_high")
        interval = (
            ""
            if low is None or high is None
            else f" ({measure.show(low).removesuffix(measure.suffix)} – {measure.show(high)})"
        )
        cells.append("" if value is None else measure.show(value) + interval)
    known = {
        index: one[name] * (1 if measure.better == "higher" else -1)
        for index, one in enumerate(measured)
        if name in one
    }
    best = (
        {index for index, value in known.items() if value == max(known.values())}
        if measure.better and len(known) > 1
        else set()
    )
    return Row(measure.title, measure.better, cells, best if len(best) < len(known) else set())


def _arrow(better: str) -> str:
    return {"higher": "↑", "lower": "↓"}.get(better, "")
