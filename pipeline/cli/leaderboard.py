"""`darkroom leaderboard` and `darkroom seeds`: several trainings, and their numbers in one table."""

import tempfile
from collections import Counter
from pathlib import Path

import click

from pipeline.environment import read as read_environment
from pipeline.errors import BadInput

FILE = click.Path(path_type=Path, exists=True, dir_okay=False, resolve_path=True)


@click.command()
@click.argument("files", nargs=-1, required=True, type=FILE)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
    default="leaderboards",
    help="The folder for the table (.md, .csv, .json) and the page (.html).",
)
@click.option(
    "--into", type=FILE, help="A Markdown file: the tables replace those between its <!-- NAME --> marks."
)
@click.option("--dry-run", is_flag=True, help="Check the files and show what would be trained.")
@click.option("--in-process", is_flag=True, help="Train in this process, without DVC experiments: faster.")
def leaderboard(
    files: tuple[Path, ...], out: Path, into: Path | None, dry_run: bool, in_process: bool
) -> None:
    """Train variants with several seeds; compare them in a table.

    FILES: YAML files with model, base, num_steps, seeds, measures and variants. Each training is a DVC
    experiment outside the workspace. What is finished is not trained again, so a command that was killed
    continues where it was.
    """
    from pipeline.files import write_text
    from pipeline.leaderboard import board as boards
    from pipeline.leaderboard import trainings
    from pipeline.leaderboard.summary import Summary, place

    count = Counter(path.stem for path in dict.fromkeys(files))
    if same := [name for name in count if count[name] > 1]:
        raise BadInput("several files of this name", where=", ".join(same), remedy="rename all but one")
    environment, read = read_environment(), {path: boards.read(path) for path in files}
    text = into.read_text(encoding="utf-8") if into else ""
    for path in files if into else ():
        place(text, path.stem, "", str(into))  # raises BadInput before anything is trained
    for folder in () if dry_run else [out, into.parent] if into else [out]:
        _require_writable(folder)
    entries = {
        path: trainings.prepare(environment, board, path, dry_run=dry_run) for path, board in read.items()
    }
    if dry_run:
        for path, board in read.items():
            for entry in trainings.missing_ones(environment, board, entries[path]):
                click.echo(f"{path.stem}: {entry}")
        return
    results = []
    for path, board in read.items():
        found = trainings.run(environment, board, entries[path], in_process=in_process)
        summary = Summary.of(board, found)
        click.echo(f"{path.stem} -> {', '.join(str(each) for each in summary.write(out, path.stem))}")
        if into:
            text = place(text, path.stem, summary.markdown(), str(into))
            write_text(into, text)
        results += found
    trainings.require_complete(results)


def _require_writable(folder: Path) -> None:
    """Make ``folder`` if it is missing. Raises ``BadInput`` if no file can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        what = f"nothing can be written there ({error.strerror})"
        raise BadInput(what, where=str(folder), remedy="name another folder") from None


@click.command()
@click.argument("name")
@click.argument("seeds", nargs=-1, type=click.IntRange(0, 2**31 - 1))
def seeds(name: str, seeds: tuple[int, ...]) -> None:
    """Train with several seeds; show mean and standard deviation.

    NAME: a model such as vae. For each of SEEDS without a finished training, a DVC experiment is run outside
    the workspace.
    """
    from rich.console import Console

    from pipeline.core import model_files
    from pipeline.core.dataset import Dataset
    from pipeline.core.fields import PROCESSED
    from pipeline.core.settings import read_training
    from pipeline.evaluation.side_by_side import seed_table
    from pipeline.leaderboard import trainings
    from pipeline.leaderboard.board import Board
    from pipeline.params import PARAMS
    from pipeline.tracking import connection, run_comparison
    from pipeline.tracking.run_description import flatten

    environment, kind = read_environment(), model_files.find(name)
    if seeds:
        board = Board(model=name, seeds=seeds, variants={name: {}})
        results = trainings.run(environment, board, trainings.prepare(environment, board, PARAMS))
        trainings.require_complete(results)
    client, experiment = connection.connect(environment)
    settings, config = read_training(name, kind.Config)
    sections = {"training": settings.model_dump(mode="json"), "model": config.model_dump(mode="json")}
    data = Dataset.open(PROCESSED / kind.dataset).digest
    found = run_comparison.by_seed(client, experiment, name, flatten(sections), data)
    if not found:
        remedy = f"dvc repro train-{name}, or name the seeds to train with"
        raise BadInput("no finished training", where=name, remedy=remedy)
    Console().print(seed_table(found))
