"""``reports/index.html``: one self-contained page with all metrics and figures, without scripts."""

import base64
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.estimate import Estimate
from pipeline.evaluation import glossary, history, page, warnings
from pipeline.evaluation.evaluate import PROTOCOL

NUM_PROGRESS_PICTURES = 6
PARTS = {  # the disjoint parts of a training's time in the report: the keys of times.json that they sum up
    "start-up": ("start", "build"),
    "compute": ("compute",),
    "data": ("data",),
    "validation": ("validation",),
    "samples": ("samples",),
    "checkpoint": ("checkpoint", "write"),
    "logging": ("logging",),
    "shutdown": ("shutdown",),
}


def write(
    results: Mapping[str, Mapping[str, Any]],
    datasets: Mapping[str, Path],
    *,
    source: str = "",
    commit: str = "",
    histories: Path = Path("history"),
    plots: Path = Path("plots"),
    path: Path = Path("reports/index.html"),
) -> None:
    """Write the page for ``results``, as ``evaluate`` returns them. The same files give the same page.

    It also shows files in ``plots``, ``histories`` and the folders of the ``datasets``, by name. ``source``
    names the data, ``commit`` the code.
    """
    names = list(results[PROTOCOL])
    warned = results.get(warnings.WARNINGS, {})
    ended = max((history.ended(histories / name) for name in names), default=0)
    models = [_model(name, Estimate.read(results[name]), histories / name, plots) for name in names]
    rows = [{"model": model["name"], **row} for model in models for row in model["rows"]]
    shown = [*rows, *(row for model in models for row in model["validation"])]
    explained = {row["measure"].explained_by or row["name"] for row in shown}
    page.write(
        path,
        __package__,
        "report.html",
        source=source,
        commit=commit,
        trained=f"{datetime.fromtimestamp(ended / 1000, UTC):%d %B %Y, %H:%M} UTC" if ended else "",
        protocol=results[PROTOCOL],
        warnings=warned,
        summary=[row for row in rows if row["measure"].headline],
        models=models,
        datasets=[
            (name, _picture(data / "contact-sheet.png"), _table(data / "classes.csv"))
            for name, data in datasets.items()
        ],
        times=_times({name: history.times(histories / name) for name in names}),
        glossary=[entry for name, entry in glossary.MEASURES.items() if name in explained],
    )


def _model(name: str, measured: Mapping[str, Estimate], folder: Path, plots: Path) -> dict[str, Any]:
    steps = history.samples(folder, NUM_PROGRESS_PICTURES)
    return {
        "name": name,
        "rows": [_row(quantity, estimate) for quantity, estimate in measured.items()],
        "pictures": [
            (caption.format(name), picture)
            for evaluator in glossary.EVALUATORS
            for kind, caption in evaluator.pictures.items()
            if (picture := _picture(plots / "pictures" / f"{name}-{kind}.png"))
        ],
        "curves": _picture(plots / "pictures" / f"{name}-curves.png"),
        "progress": [(step, _picture(picture)) for step, picture in steps.items()],
        "tables": [
            (caption, table)
            for evaluator in glossary.EVALUATORS
            for kind, caption in evaluator.tables.items()
            if (table := _table(plots / "tables" / f"{name}-{kind}.csv"))
        ],
        "validation": _extremes(history.curves(folder)),
    }


def _row(name: str, estimate: Estimate) -> dict[str, Any]:
    """One measure: value, interval, floor, and their positions on a scale from 0 to 100."""
    measure, parts = glossary.measure(name), estimate.to_json()
    shown = parts.values()
    ends = (0.0, 1.0) if measure.percent else (min(0.0, *shown), 1.06 * max(1e-12, *shown))
    floor = "" if estimate.floor is None else measure.show(estimate.floor)
    return {
        "name": name,
        "measure": measure,
        "value": measure.show(estimate.value),
        "interval": measure.interval(estimate),
        "floor": floor,
        "reading": measure.floor.format(floor) if floor else "",
        "at": {part: _position(number, *ends) for part, number in parts.items()},
    }


def _position(number: float, low: float, high: float) -> float:
    """Where ``number`` is on a scale from 0 (``low``) to 100 (``high``)."""
    return round(100 * min(1.0, max(0.0, (number - low) / (high - low))), 2)


def _extremes(table: pd.DataFrame | None) -> list[dict[str, Any]]:
    """The last, lowest and highest value of each validation curve, with their steps."""
    curves = pd.DataFrame() if table is None else table.set_index("step").filter(regex="^validation/")
    found = []
    for column, values in curves.items():
        name, values = str(column).removeprefix("validation/"), values.dropna()
        measure = glossary.measure(name)
        found.append(
            {
                "name": name,
                "measure": measure,
                "last": measure.show(values.iloc[-1]),
                "lowest": measure.show(values.min()),
                "lowest_step": values.idxmin(),
                "highest": measure.show(values.max()),
                "highest_step": values.idxmax(),
            }
        )
    return found


def _times(by_model: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """For each training with a known total: its parts in seconds and in percent of their sum."""
    known = {name: times for name, times in by_model.items() if "total" in times}
    seconds = [_parts(times) for times in known.values()]
    totals = [sum(parts.values()) for parts in seconds]
    return {
        "known": known,
        "total": totals,
        "rows": {
            part: [(each[part], 100 * each[part] / (total or 1)) for each, total in zip(seconds, totals)]
            for part in [*PARTS, "other"]
        },
        "prices": sorted({times["price_per_hour"] for times in known.values() if "cost" in times}),
    }


def _parts(times: dict[str, Any]) -> dict[str, float]:
    """Seconds by part. "other" is the rest of the total; 0 if a killed process did not record all of it."""
    parts = {part: sum(times.get(key, 0.0) for key in keys) for part, keys in PARTS.items()}
    return {**parts, "other": max(0.0, times["total"] - sum(parts.values()))}


def _picture(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode() if path.is_file() else ""


def _table(path: Path) -> str:
    """A CSV file as an HTML table; empty without that file."""
    if not path.is_file():
        return ""
    table = pd.read_csv(path, keep_default_na=False)
    return table.to_html(index=False, border=0, classes="plain", float_format="{:.3f}".format)
