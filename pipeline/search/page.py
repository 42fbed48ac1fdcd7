"""The page of a search: the table of its trials, their history, and what each setting does."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.evaluation import page
from pipeline.evaluation.figures import GREY, RED, STYLE
from pipeline.search import study as studies
from pipeline.search.ranking import Ranking
from pipeline.tracking.rerun import as_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SLICES_PER_ROW = 3


def write(ranking: Ranking, path: Path) -> None:
    """Write the page as one self-contained file."""
    search = ranking.search.search
    importances = studies.importances(ranking.search.study)
    rows = -(-len(search.settings) // SLICES_PER_ROW)
    wide = min(len(search.settings), SLICES_PER_ROW)
    pictures = {"History": _drawn(8.0, 3.0, lambda figure: _history(figure, ranking))}
    if importances:
        high = 0.8 + 0.35 * len(importances)
        pictures["Importance"] = _drawn(8.0, high, lambda figure: _importance(figure, importances))
    pictures["Settings"] = _drawn(3.6 * wide, 2.7 * rows, lambda figure: _slices(figure, ranking))
    page.write(
        path,
        __package__,
        "search.html",
        ranking=ranking,
        name=ranking.search.name,
        search=search,
        table=ranking.table(),
        pictures=pictures,
        settings={key: _text(ranking, key) for key in search.settings},
    )


def _text(ranking: Ranking, key: str) -> str:
    """What is searched for a setting, as in params.yaml."""
    setting = ranking.search.search.settings[key]
    given = setting.model_dump(mode="json", exclude_defaults=True)
    return ", ".join(f"{name}: {as_text(value)}" for name, value in given.items())


def _drawn(width: float, height: float, draw: Callable[["Figure"], None]) -> str:
    """A figure of this size in inches as a data URL."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure, stream = Figure(figsize=(width, height)), io.BytesIO()
        draw(figure)
        figure.savefig(stream, format="png", metadata={"Software": None})
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _history(figure: "Figure", ranking: Ranking) -> None:
    """The value of each trial, and the best one so far."""
    trials = sorted(ranking.trials, key=lambda trial: trial.number)
    done = [trial for trial in trials if trial.values]
    axes = figure.subplots()
    best = np.maximum if ranking.search.search.mode == "max" else np.minimum
    axes.plot([trial.number for trial in done], [trial.mean for trial in done], "o", color=GREY, markersize=4)
    numbers, means = [trial.number for trial in done], [trial.mean for trial in done]
    axes.step(numbers, best.accumulate(means), where="post", color=RED, label="best so far")
    for trial in trials:
        if trial.state == "pruned":
            axes.axvline(trial.number, ymax=0.04, color=GREY)
    axes.set(xlabel="trial (a line at the bottom: pruned)", ylabel=ranking.search.search.metric)
    axes.legend()


def _importance(figure: "Figure", importances: dict[str, float]) -> None:
    axes = figure.subplots()
    names = [*importances][::-1]
    axes.barh(names, [importances[name] for name in names], color=RED, height=0.6)
    axes.set(xlabel="share of the importance (PED-ANOVA)", xlim=(0, 1))


def _slices(figure: "Figure", ranking: Ranking) -> None:
    """The metric by the value of each setting."""
    settings = ranking.search.search.settings
    wide = min(len(settings), SLICES_PER_ROW)
    for place, (name, setting) in enumerate(settings.items(), 1):
        axes = figure.add_subplot(-(-len(settings) // wide), wide, place)
        shown = [trial for trial in ranking.trials if trial.values and name in trial.settings]
        means = [trial.mean for trial in shown]
        if setting.choices:
            labels = [*setting.values]
            places = [labels.index(as_text(trial.settings[name])) for trial in shown]
            axes.set_xticks(range(len(labels)), labels)
        else:
            places = [trial.settings[name] for trial in shown]
        axes.plot(places, means, "o", color=RED, markersize=4)
        if setting.log:
            axes.set_xscale("log")
        axes.set_title(name.partition(".")[2])
