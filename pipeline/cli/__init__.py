"""The ``darkroom`` command: what DVC, Ray and MLflow do not do by themselves."""

import contextlib
import signal
import sys
from pathlib import Path

import click

from pipeline import doctor, environment, process
from pipeline.cli import (
    describe,
    explanation,
    exploration,
    export,
    forecast,
    inference,
    inspect,
    leaderboard,
    recipe,
    report,
    repro,
    restoration,
    retraining,
    schedule,
    search,
    segmentation,
    tracking,
)
from pipeline.cli.project import in_project
from pipeline.errors import BadInput, DarkroomError
from pipeline.tracking.lineage import redact


def main() -> None:
    """The console script."""
    process.run(_run)


SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 120, "show_default": True}


@click.group(context_settings=SETTINGS)
@click.version_option(package_name="darkroom", prog_name="darkroom")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def commands(debug: bool) -> None:
    """Commands for the models that `dvc repro` trains.

    Exit codes: 0 done, 1 failed, 2 bad input, 75 busy.
    """
    if debug:
        environment.set_debug()


@commands.command(name="doctor")
@click.option(
    "--brief", is_flag=True, help="Print only faults that would stop `darkroom repro`, and what it repairs."
)
def check(brief: bool) -> None:
    """Check this installation and print how to fix what is wrong.

    It checks packages, params.yaml, disk, git, DVC's files, trained models, devices and the addresses in the
    environment, and repeats the warnings of the last evaluation. Exit code 2 if anything is wrong; warnings
    do not count. An address that does not answer takes 4 seconds at most.
    """
    if root := environment.find_project(Path()):
        click.get_current_context().with_resource(contextlib.chdir(root))
    findings = doctor.examine(environment.read(), brief)
    for finding in findings:
        if finding.is_warning or not finding.well or not brief:
            mark = "warn" if finding.is_warning else "ok  " if finding.well else "FAIL"
            click.echo(f"{mark}  {finding.what}")
            if mark != "ok  ":
                click.echo(f"      -> {finding.remedy}")
    if not all(finding.well for finding in findings):
        sys.exit(BadInput.exit_code)


def _run() -> None:
    """Run the command. Ctrl-C gives exit code 130; an error of MLflow becomes a ``DarkroomError``."""
    try:
        sys.exit(commands.main(standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if not type(error).__module__.startswith("mlflow."):
            raise
        reason, remedy = redact(str(error)).splitlines()[0][:300], "check MLFLOW_TRACKING_URI and the server"
        raise DarkroomError(f"MLflow failed: {reason}", remedy=remedy) from error


for command in (
    inference.generate,
    inference.classify,
    restoration.restore,
    segmentation.segment,
    exploration.explore,
    explanation.explain,
    forecast.forecast,
    export.export,
    inspect.inspect,
    schedule.schedule,
    search.search,
):
    commands.add_command(command)
for command in (
    tracking.sync,
    tracking.trace,
    tracking.verify,
    tracking.sign,
    tracking.reproduce,
    tracking.promote,
    tracking.rollback,
    tracking.compare,
    leaderboard.leaderboard,
    leaderboard.seeds,
    recipe.recipe,
    describe.describe,
    report.report,
    repro.repro,
    retraining.retrain,
    retraining.history,
):
    commands.add_command(in_project(command))
