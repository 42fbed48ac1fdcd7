"""Runs the trainings of a leaderboard as DVC experiments. A finished training is not repeated."""

import json
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from pipeline.core import model_files
from pipeline.core.fields import PROCESSED
from pipeline.environment import Environment
from pipeline.errors import DarkroomError
from pipeline.leaderboard.board import Board, Entry, entries
from pipeline.process import DVC, die_with_parent, exclusive, output
from pipeline.repro import repro
from pipeline.tracking import connection, lineage, run_comparison, runs
from pipeline.tracking.run_comparison import Compared


@dataclass(frozen=True)
class Result:
    """What is known of one training: ``run`` is None if it failed or was not measured, see ``failure``."""

    entry: Entry
    run: Compared | None
    curve: list[float]  # of ``Board.curve``, by step
    failure: str = ""


def prepare(environment: Environment, board: Board, path: Path, *, dry_run: bool = False) -> list[Entry]:
    """Bring the data up to date; all trainings of ``board``. Raises ``BadInput`` as ``entries`` does.

    ``dry_run``: change nothing; say if the data are not up to date.
    """
    prepare_data(environment, board.model, dry_run=dry_run)
    return entries(board, path)


def prepare_data(environment: Environment, model: str, *, dry_run: bool = False) -> None:
    """Bring the data of ``model`` up to date. ``dry_run``: only say if they are not."""
    folder = str(PROCESSED / model_files.find(model).dataset)
    stages = lineage.stages_of(Path("dvc.yaml"))
    made_by = [name for name, stage in stages.items() if folder in lineage.paths_in(stage, "outs")]
    if made_by and not dry_run:
        repro(environment, made_by)
    elif made_by:
        command = ("status", "--json", "--with-deps", *made_by)
        if json.loads(output(*DVC, *command, name="dvc status", cwd=environment.root, timeout_seconds=600)):
            text = f"{folder} is not up to date: dvc repro {' '.join(made_by)} comes first"
            click.echo(f"{text}, after which other trainings may be missing")


def run(
    environment: Environment, board: Board, trainings: list[Entry], *, in_process: bool = False
) -> list[Result]:
    """Train and measure what is missing; one result for each training, in this order.

    ``in_process``: in this process instead of in DVC experiments, which is faster. A training that fails
    does not stop the others. Raises ``DarkroomError`` with exit code 75 if another process runs experiments
    of this command here.
    """
    with exclusive(environment.root / ".darkroom/leaderboard.lock", "another leaderboard is being trained"):
        runs.sync(environment)
        missing = missing_ones(environment, board, trainings)
        click.echo(f"{len(trainings)} trainings, of which {len(trainings) - len(missing)} are finished")
        for number, entry in enumerate(missing, 1):
            click.echo(f"{number} of {len(missing)}: {entry}")
            _train(environment, board.model, entry, in_process)
        runs.sync(environment)  # what the server did not receive in time
        found = _results(environment, board, trainings)
        for entry in _others(found):  # measured earlier, with another classifier; this trains nothing
            click.echo(f"measured again: {entry}")
            _train(environment, board.model, entry, in_process)
    return _results(environment, board, trainings)


def missing_ones(environment: Environment, board: Board, trainings: list[Entry]) -> list[Entry]:
    """Those without a finished and measured training. Creates no database."""
    database = Path(environment.tracking_uri.removeprefix(connection.SQLITE))
    if connection.is_local(environment) and not database.exists():
        return trainings
    return [result.entry for result in _results(environment, board, trainings) if result.run is None]


def _results(environment: Environment, board: Board, trainings: list[Entry]) -> list[Result]:
    client, experiment = connection.connect(environment)
    found = []
    for entry in trainings:
        title = str(entry)
        run = run_comparison.by_fingerprint(client, experiment, board.model, entry.fingerprint, title)
        if run is None or not run.results:
            failure = run_comparison.failure(client, experiment, board.model, entry.fingerprint)
            found.append(Result(entry, None, [], failure))
        else:
            metric = f"validation/{board.curve}"
            points = run_comparison.curve(client, run.run_id, metric) if board.curve else []
            found.append(Result(entry, run, points))
    return found


def _others(results: list[Result]) -> list[Entry]:
    """The trainings without a result by the newest protocol, if there is none that all share."""
    measured = [result for result in results if result.run is not None]
    if not measured or run_comparison.numbers([result.run for result in measured if result.run])[1]:
        return []
    protocols: list[Mapping[str, object]] = [result.run.results for result in measured if result.run]
    newest = list(protocols[-1])[-1]
    return [result.entry for result, known in zip(measured, protocols) if newest not in known]


def _train(environment: Environment, name: str, entry: Entry, in_process: bool) -> None:
    """Train and measure an entry. If this fails, it has no result."""
    if not in_process:
        return _experiment(environment, entry)
    from pipeline.leaderboard.in_process import train_and_measure

    try:
        train_and_measure(environment, name, entry.params)
    except Exception as error:  # of one entry, such as a lack of memory: the others go on
        click.echo(f"error: {entry}: {error}", err=True)


def _experiment(environment: Environment, entry: Entry) -> None:
    """Run the DVC experiment of a training, outside the workspace."""
    overrides = [word for change in entry.changes() for word in ("-S", change.override)]
    command = ["exp", "run", "--temp", *overrides]
    click.echo(shlex.join(["dvc", *command]))
    # No time limit. If it fails, there is no result.
    subprocess.run([*DVC, *command], cwd=environment.root, preexec_fn=die_with_parent, check=False)


def require_complete(results: list[Result]) -> None:
    """Raise ``DarkroomError`` if a training failed."""
    if failed := [str(result.entry) for result in results if result.run is None]:
        reasons = "; ".join(dict.fromkeys(result.failure for result in results if result.failure))
        what = "the experiment failed" + (f": {reasons}" if reasons else "")
        raise DarkroomError(what, where="; ".join(failed), remedy="see above; the same command continues")
