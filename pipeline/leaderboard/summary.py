"""The table of a leaderboard: Markdown, CSV, JSON and a page with pictures."""

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from pipeline.errors import BadInput
from pipeline.estimate import Estimate
from pipeline.evaluation import glossary, page
from pipeline.evaluation.measure import Measure
from pipeline.files import write_json, write_text
from pipeline.leaderboard.board import Board
from pipeline.leaderboard.trainings import Result
from pipeline.tracking.rerun import as_text, leaves
from pipeline.tracking.run_comparison import numbers, spread

LEVEL = 0.95  # of the intervals
SEVERAL = "mean ± standard deviation over the seeds, 95 % interval of the mean (Student's t), best seed"
SINGLE = "the value, its 95 % interval over the test images; how much seeds differ is not known"
NOTES = {
    True: "All were measured by the same protocol.",
    False: "They were measured by different protocols: no value is marked as the best.",
}


@dataclass(frozen=True)
class Spread:
    """A quantity of several seeds. ``low`` and ``high``: the 95 % interval of the mean; None if unknown."""

    mean: float
    deviation: float
    low: float | None
    high: float | None
    best: float  # of a single seed
    count: int  # of values


@dataclass(frozen=True)
class Row:
    """One variant. ``cost`` is in processor seconds, or in GPU seconds if it was trained on GPUs."""

    variant: str
    settings: Mapping[str, Any]
    num_finished: int  # seeds
    failure: str
    measures: Mapping[str, Spread]
    curve: Mapping[str, Spread]  # best and last
    seconds: Spread | None
    cost: Spread | None
    device: str
    num_parameters: int
    picture: bytes  # the sample grid of the first seed (PNG)


@dataclass(frozen=True)
class Summary:
    """All that the files of a leaderboard show."""

    board: Board
    rows: list[Row]
    same_protocol: bool

    @classmethod
    def of(cls, board: Board, results: list[Result]) -> "Summary":
        """The summary of these results."""
        finished = [result.run for result in results if result.run]
        measured, same_protocol = numbers(finished) if finished else ([], True)
        by_run = dict(zip((run.run_id for run in finished), measured)) if same_protocol else {}
        rows = []
        for name in board.variants:
            own = [result for result in results if result.entry.variant == name]
            rows.append(_row(board, name, own, by_run))
        return cls(board, rows, same_protocol)

    @property
    def note(self) -> str:
        """Whether the rows can be compared."""
        return NOTES[self.same_protocol]

    @property
    def measures(self) -> dict[str, Measure]:
        """The measures that are shown: those of the file, else the headlines that the variants have."""
        known = dict.fromkeys(name for row in self.rows for name in row.measures)
        chosen = self.board.measures or [name for name in known if glossary.measure(name).headline]
        return {name: glossary.measure(name) for name in chosen}

    def best(self, name: str) -> float | None:
        """The best mean of a measure; None if there is nothing to compare."""
        means = [row.measures[name].mean for row in self.rows if name in row.measures]
        better = glossary.measure(name).better
        if not better or not self.same_protocol or len(set(means)) < 2:
            return None
        return (max if better == "higher" else min)(means)

    def cells(self, row: Row) -> dict[str, list[str]]:
        """The lines of each cell of a row, by the title of the column."""
        shown = {}
        for name, measure in self.measures.items():
            shown[f"{measure.title} {measure.arrow}".strip()] = _lines(measure, row.measures.get(name))
        curve = glossary.measure(self.board.curve)
        for which, found in row.curve.items():
            shown[f"validation {curve.title[:1].lower()}{curve.title[1:]}, {which}"] = _lines(
                curve, found, best=False
            )
        seconds = Measure("", unit="s")
        cost = Measure("", unit="GPU s" if row.device.startswith("cuda") else "CPU s")
        return shown | {
            "time": _lines(seconds, row.seconds, best=False, interval=False),
            "cost": _lines(cost, row.cost, best=False, interval=False),
            "parameters": [f"{row.num_parameters:,}"] if row.num_parameters else [],
        }

    def protocol(self) -> str:
        """One sentence on what was done."""
        steps = f"{self.board.num_steps:,} steps each, " if self.board.num_steps else ""
        seeds = ", ".join(map(str, self.board.seeds))
        shown = SEVERAL if len(self.board.seeds) > 1 else SINGLE
        return f"{steps}seeds {seeds}, base: {self.board.base}. Each cell: {shown}. {self.note}"

    def markdown(self) -> str:
        """The table in Markdown."""
        columns = list(dict.fromkeys(title for row in self.rows for title in self.cells(row)))
        lines = [f"| variant | settings | {' | '.join(columns)} |", "| --- " * (len(columns) + 2) + "|"]
        bests = {name: self.best(name) for name in self.measures}
        for row in self.rows:
            cells = [self.cells(row).get(title, []) for title in columns]
            for number, name in enumerate(self.measures):
                if cells[number] and row.measures[name].mean == bests[name]:
                    cells[number] = [f"**{cells[number][0]}**", *cells[number][1:]]
            texts = ["<br>".join(lines) or "-" for lines in cells]
            name = "<br>".join(filter(None, (row.variant, row.failure)))
            texts = [name, "<br>".join(_settings(row)) or "-", *texts]
            texts = [" ".join(text.split()).replace("|", "\\|") for text in texts]
            lines.append(f"| {' | '.join(texts)} |")
        return "\n".join([*lines, "", self.protocol(), ""])

    def write(self, folder: Path, name: str) -> list[Path]:
        """Write ``name.md``, ``.csv``, ``.json`` and ``.html`` into ``folder``."""
        paths = [folder / f"{name}.{suffix}" for suffix in ("md", "csv", "json", "html")]
        write_text(paths[0], f"# {self.board.title or name}\n\n{self.markdown()}")
        table = [_flat(row) for row in self.rows]
        write_text(paths[1], pd.DataFrame(table).to_csv(index=False))
        listed = [{key: value for key, value in asdict(row).items() if key != "picture"} for row in self.rows]
        write_json(paths[2], {"board": self.board.model_dump(mode="json"), "rows": listed, "note": self.note})
        page.write(
            paths[3],
            __package__,
            "leaderboard.html",
            title=self.board.title or name,
            protocol=self.protocol(),
            columns=list(dict.fromkeys(title for row in self.rows for title in self.cells(row))),
            rows=[(row, _settings(row), self.cells(row)) for row in self.rows],
            best={
                (row.variant, number)
                for row in self.rows
                for number, measure in enumerate(self.measures)
                if measure in row.measures and row.measures[measure].mean == self.best(measure)
            },
            pictures=[
                (row.variant, f"data:image/png;base64,{base64.b64encode(row.picture).decode()}")
                for row in self.rows
                if row.picture
            ],
        )
        return paths


def place(text: str, name: str, table: str, where: str) -> str:
    """``text`` with ``table`` between the lines ``<!-- name -->`` and ``<!-- /name -->``."""
    before, opened, rest = text.partition(f"<!-- {name} -->\n")
    _, closed, after = rest.partition(f"<!-- /{name} -->")
    if not (opened and closed):
        remedy = f"add the lines <!-- {name} --> and <!-- /{name} --> where the table belongs"
        raise BadInput(f"has no place for the leaderboard '{name}'", where=where, remedy=remedy)
    return f"{before}{opened}{table}{closed}{after}"


def spread_of(
    values: list[float], better: str = "lower", single: Estimate | None = None, *, percent: bool = False
) -> Spread:
    """Mean, sample standard deviation, Student's interval of the mean, and the best of ``values``.

    A single value has the interval of its measurement, ``single``. ``percent``: values are in [0, 1].
    """
    mean, deviation = spread(values)
    low, high = (single.low, single.high) if single and len(values) == 1 else (None, None)
    if len(values) > 1:
        half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * deviation / len(values) ** 0.5
        low, high = mean - half, mean + half
        if percent:
            low, high = max(low, 0.0), min(high, 1.0)
    best = (max if better == "higher" else min)(values)
    return Spread(mean, deviation, low, high, best, len(values))


def _row(board: Board, name: str, results: list[Result], by_run: Mapping[str, Mapping[str, Estimate]]) -> Row:
    """The row of a variant. ``by_run``: the numbers by one protocol that all runs share, if there is one."""
    runs = [result.run for result in results if result.run]
    estimates, shared = [by_run.get(run.run_id, {}) for run in runs], True
    if runs and not by_run:
        estimates, shared = numbers(runs)
    estimates, measures = estimates if shared else [], {}
    for quantity in dict.fromkeys(quantity for found in estimates for quantity in found):
        own, measure = (
            [found[quantity] for found in estimates if quantity in found],
            glossary.measure(quantity),
        )
        values = [estimate.value for estimate in own]
        measures[quantity] = spread_of(values, measure.better, own[0], percent=measure.percent)
    shown, curves, curve = glossary.measure(board.curve), [each.curve for each in results if each.curve], {}
    if curves:
        choose = max if shown.better == "higher" else min
        for which, values in {"best": [*map(choose, curves)], "last": [each[-1] for each in curves]}.items():
            curve[which] = spread_of(values, shown.better, percent=shown.percent)
    times = [_times(run.tags, run.params) for run in runs]
    missing = [result for result in results if result.run is None]
    reason = next((result.failure for result in missing if result.failure), "no result")
    remarks = [f"{len(missing)} of {len(results)} seeds failed: {reason}"] * bool(missing)
    remarks += ["its seeds were measured by different protocols: no mean"] * (not shared)
    return Row(
        name,
        leaves(board.variants[name]),
        len(runs),
        "; ".join(remarks),
        measures,
        curve,
        spread_of([seconds for seconds, _ in times]) if times else None,
        spread_of([cost for _, cost in times]) if times else None,
        runs[0].tags.get("darkroom.device", "") if runs else "",
        results[0].entry.num_parameters if results else 0,
        runs[0].picture if runs else b"",
    )


def _times(tags: Mapping[str, str], params: Mapping[str, str]) -> tuple[float, float]:
    """Seconds and cost of a training. Those of one that was resumed are extrapolated from its last part."""

    def number(key: str) -> float:
        text = tags.get(f"darkroom.{key}", "")
        return float(text) if text else 0.0

    share = number("steps") / (number("last_step") or float(params["training.num_steps"])) or 1.0
    is_gpu = tags.get("darkroom.device", "").startswith("cuda")
    cost = number("total") if is_gpu else number("processor") or number("total") * (number("threads") or 1)
    return number("total") / share, cost * (number("workers") or 1) / share


def _lines(measure: Measure, found: Spread | None, *, best: bool = True, interval: bool = True) -> list[str]:
    if found is None:
        return []
    several = found.count > 1
    lines = [measure.spread(found.mean, found.deviation) if several else measure.show(found.mean)]
    if interval and found.low is not None:
        lines.append(f"({measure.interval(Estimate(found.mean, found.low, found.high))})")
    if best and several:
        lines.append(f"best {measure.show(found.best)}")
    return lines


def _settings(row: Row) -> list[str]:
    """The settings of a variant as arguments of ``dvc exp run -S``."""
    return [f"`{key}={as_text(value)}`" for key, value in row.settings.items()]


def _flat(row: Row) -> dict[str, Any]:
    """A row of the CSV file."""
    spreads = {**row.measures, **{f"validation {which}": found for which, found in row.curve.items()}}
    spreads |= {name: found for name, found in (("seconds", row.seconds), ("cost", row.cost)) if found}
    numbers = {
        f"{name} {part}": number for name, found in spreads.items() for part, number in asdict(found).items()
    }
    settings = " ".join(f"{key}={as_text(value)}" for key, value in row.settings.items())
    known = {"variant": row.variant, "settings": settings, "seeds": row.num_finished, "failure": row.failure}
    return {**known, "parameters": row.num_parameters, "device": row.device, **numbers}
