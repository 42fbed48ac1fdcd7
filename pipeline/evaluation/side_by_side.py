"""Tables and a page that show several runs side by side, and the spread over seeds."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from pipeline.estimate import Estimate
from pipeline.evaluation import glossary, page
from pipeline.evaluation.measure import Measure
from pipeline.tracking.run_comparison import Compared, differing, numbers, spread


@dataclass(frozen=True)
class Row:
    """One measure of all runs."""

    measure: Measure
    cells: list[str]  # empty for a run without this measure
    best: set[int]  # columns with the best value


def rows(compared: list[Compared]) -> list[Row]:
    """A row for each measure that at least one run has, with 95 % intervals.

    Where the protocols differ no value is marked as the best: those of two feature spaces cannot be compared.
    """
    measured, same_protocol = numbers(compared)
    return [
        _row(name, measured, same_protocol)
        for name in dict.fromkeys(name for one in measured for name in one)
    ]


def note(compared: list[Compared]) -> str:
    """Whether the results can be compared."""
    measured, same_protocol = numbers(compared)
    if same_protocol:
        return "All were measured by the same protocol."
    missing = [run.title for run, known in zip(compared, measured) if not known]
    if missing:
        return f"{', '.join(missing)}: not measured, or by another version of Darkroom."
    return (
        "They were measured by different protocols (other data, settings or feature space): distances, "
        "precision and recall cannot be compared. No value is marked as the best, and there is no mean."
    )


def table(compared: list[Compared]) -> Table:
    """The table for the terminal: measures, then the params that differ."""
    shown = Table("", *(run.title for run in compared), box=None, header_style="bold", caption=note(compared))
    for row in rows(compared):
        cells = [f"[bold]{cell}[/]" if index in row.best else cell for index, cell in enumerate(row.cells)]
        shown.add_row(f"{row.measure.title} {row.measure.arrow}", *cells)
    for name, values in differing(compared).items():
        shown.add_row(f"[dim]{name}[/]", *values)
    return shown


def write_page(compared: list[Compared], path: Path) -> None:
    """Write one self-contained page: measures, last sample grids, params that differ."""
    pictures = [(run.title, base64.b64encode(run.picture).decode()) for run in compared if run.picture]
    page.write(
        path,
        __package__,
        "side_by_side.html",
        titles=[(run.title, run.run_id) for run in compared],
        note=note(compared),
        rows=rows(compared),
        pictures=[(title, f"data:image/png;base64,{picture}") for title, picture in pictures],
        params=list(differing(compared).items()),
    )


def seed_table(by_seed: Mapping[int, Compared]) -> Table:
    """Mean, standard deviation and values over the seeds, of each measure that all have.

    Where the protocols differ there is no mean: values of two feature spaces cannot be averaged.
    """
    compared = list(by_seed.values())
    measured, same_protocol = numbers(compared)
    names = ["", "mean ± std", *(f"seed {seed}" for seed in by_seed)]
    shown = Table(*names, box=None, header_style="bold", caption=note(compared))
    for name in [name for name in measured[0] if all(name in other for other in measured)]:
        measure, values = glossary.measure(name), [other[name].value for other in measured]
        summary = measure.spread(*spread(values)) if same_protocol else ""
        shown.add_row(f"{measure.title} {measure.arrow}", summary, *map(measure.show, values))
    return shown


def _row(name: str, measured: list[Mapping[str, Estimate]], comparable: bool) -> Row:
    measure = glossary.measure(name)
    known = {index: run[name] for index, run in enumerate(measured) if name in run}
    cells = [""] * len(measured)
    for index, estimate in known.items():
        interval = measure.interval(estimate)
        cells[index] = measure.show(estimate.value) + f" ({interval})" * bool(interval)
    top = (max if measure.better == "higher" else min)(estimate.value for estimate in known.values())
    best = {index for index, estimate in known.items() if estimate.value == top}
    if not comparable or not measure.better or len(best) == len(known):
        best = set()
    return Row(measure, cells, best)
