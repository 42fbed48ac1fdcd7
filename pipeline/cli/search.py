"""`darkroom search`: find better settings of a model."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from pipeline.cli.project import in_project
from pipeline.environment import read as read_environment
from pipeline.process import exclusive
from pipeline.search.settings import Pruner, Sampler

if TYPE_CHECKING:
    from pipeline.environment import Environment
    from pipeline.search.settings import ModelSearch

NUM_TRIALS = 20
MOST_ROWS = 15


class _ModelGroup(click.Group):
    """``darkroom search MODEL`` is short for ``darkroom search run MODEL``."""

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        if arguments and arguments[0] not in (*self.commands, "--help", "-h"):
            arguments = ["run", *arguments]
        return super().parse_args(context, arguments)


@click.group(cls=_ModelGroup)
def search() -> None:
    """Find better settings of a model.

    `darkroom search MODEL` is short for `darkroom search run MODEL`. The section search of params.yaml has
    what is searched.
    """


@search.command()
@click.argument("model")
@click.option("--trials", type=click.IntRange(1), help="Trials in all.  [default: 20; all of a grid]")
@click.option("--hours", type=click.FloatRange(0, min_open=True), help="After this time the search pauses.")
@click.option("--seeds", type=click.IntRange(1, 1000), default=1, help="Trainings of each trial.")
@click.option("--sampler", type=click.Choice(get_args(Sampler)), help="Instead of that of params.yaml.")
@click.option("--pruner", type=click.Choice(get_args(Pruner)), help="Instead of that of params.yaml.")
@click.option(
    "--parallel", type=click.IntRange(1, 10_000), default=1, help="Trials at the same time, on Ray."
)
@click.option("--dry-run", is_flag=True, help="Check the settings; show what would be searched.")
def run(
    model: str,
    trials: int | None,
    hours: float | None,
    seeds: int,
    parallel: int,
    dry_run: bool,
    **how: str | None,
) -> None:
    """Train MODEL with different settings; rank them by a metric of the validation split.

    The same command continues a search that was interrupted, or one with more trials. No settings are trained
    twice. The result is a table, and searches/MODEL.html.
    """
    from rich.console import Console

    from pipeline.leaderboard.trainings import prepare_data
    from pipeline.search.search import Search
    from pipeline.search.trials import Budget
    from pipeline.search.trials import run as run_trials

    space = _space(model, how)
    if trials is None and hours is None and space.sampler != "grid":
        trials = NUM_TRIALS
    if dry_run:
        Console().print(_described(space))
        limits = [f"{trials} trials"] * (trials is not None) + [f"{hours} hours"] * (hours is not None)
        budget = " or ".join(limits) or "all points"
        click.echo(f"{budget}, {seeds} training(s) each, {space.sampler}; nothing was trained")
        return
    environment = read_environment()
    prepare_data(environment, model)
    with _locked(environment, model):
        page = Path("searches", f"{model}.html")
        found = Search(environment, model, space, seeds)
        ranking = run_trials(found, Budget(trials, hours and hours * 3600), page, parallel)
    Console().print(_table(ranking.table(MOST_ROWS)))
    click.echo(ranking.note)
    click.echo(f"{page}; next: darkroom search apply {model}")


@search.command()
@click.argument("model")
@click.option("--dry-run", is_flag=True, help="Show what would change, write nothing.")
def apply(model: str, dry_run: bool) -> None:
    """Write the best settings of the last search of MODEL into params.yaml.

    It is an error if other settings, the data or the code have changed since the search.
    """
    from pipeline import recipes
    from pipeline.search.ranking import Ranking
    from pipeline.search.search import Search
    from pipeline.search.space import params_of
    from pipeline.tracking.rerun import as_text, difference, leaves

    environment, space = read_environment(), _space(model, {})
    with _locked(environment, model):
        found = Search.latest(environment, model, space)
        ranking = Ranking.of(found)
    best, before = ranking.trials[0], found.params
    after = params_of(space, before, best.settings)
    recipes.write(before, after, dry_run=dry_run)
    old = leaves(before)
    changed = difference(old, leaves(after))
    for change in changed:
        was = as_text(old[change.key]) if change.key in old else "default"
        click.echo(f"{change.key}: {was} -> {'default' if change.kind == '~' else as_text(change.value)}")
    click.echo(f"trial {best.number} of {len(ranking.trials)}: {space.metric} {best.result}. {ranking.note}")
    written = "nothing was written" if dry_run else f"{len(changed)} settings written"
    click.echo(f"{written}; next: dvc repro" if changed else "params.yaml has these settings already")


def _space(model: str, how: dict[str, str | None]) -> "ModelSearch":
    """What is searched, with the options that were given."""
    from pipeline.search.space import read_search
    from pipeline.settings_check import require_valid_params

    require_valid_params()
    chosen = {key: value for key, value in how.items() if value is not None}
    return read_search(model).model_copy(update=chosen)


def _locked(environment: "Environment", model: str) -> Any:
    return exclusive(environment.root / f".darkroom/search/{model}.lock", "another search of it is running")


def _described(space: "ModelSearch") -> Any:
    import pandas as pd

    rows = [
        {"setting": name, **setting.model_dump(mode="json", exclude_defaults=True)}
        for name, setting in space.settings.items()
    ]
    return _table(pd.DataFrame(rows).astype(object).fillna(""))


def _table(table: Any) -> Any:
    from rich.table import Table

    shown = Table(*table.columns, box=None, header_style="bold")
    for row in table.itertuples(index=False, name=None):
        shown.add_row(*map(str, row))
    return shown


for command in (run, apply):
    in_project(command)
