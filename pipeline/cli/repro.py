"""`darkroom repro`: `dvc repro` with several stages at once."""

from contextlib import suppress

import click

from pipeline.environment import read as read_environment
from pipeline.environment import set_checked_params
from pipeline.errors import EXIT_BUSY, BadInput, DarkroomError
from pipeline.params import PARAMS


@click.command()
@click.argument("targets", nargs=-1)
@click.option("--jobs", "-j", type=click.IntRange(1, 1000), default=1, help="Stages at once.")
@click.option("--force", "-f", is_flag=True, help="Also run stages that are up to date.")
def repro(targets: tuple[str, ...], jobs: int, force: bool) -> None:
    """Run the stages that are out of date, several at once.

    TARGETS: stages (default: all). Afterwards, results that MLflow does not have yet are sent to it.
    """
    from pipeline import repro as stages
    from pipeline.settings_check import digest, require_valid_params
    from pipeline.tracking import runs

    environment, failure = read_environment(), None
    if PARAMS.is_file():
        checked = ""
        with suppress(OSError):  # explained by the next line
            checked = digest()
        require_valid_params()  # before DVC removes the outputs of the first stage that runs
        set_checked_params(checked)
    try:
        stages.repro(environment, list(targets), jobs, force)
    except DarkroomError as error:
        if isinstance(error, BadInput) or error.exit_code == EXIT_BUSY:
            raise
        failure = error
    try:
        runs.sync(environment)
    except DarkroomError as error:
        click.echo(f"warning: {error}", err=True)
    if failure is not None:
        raise failure
