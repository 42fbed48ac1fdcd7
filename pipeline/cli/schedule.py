"""`darkroom schedule`: `darkroom retrain` every day, by cron or by systemd."""

import shutil
from datetime import datetime

import click

from pipeline import environment
from pipeline.files import write_text
from pipeline.retraining import schedule as schedules

NOTE = """Set its variables (MLFLOW_TRACKING_URI, ...) in .darkroom/schedule.env, as lines NAME='value'.
A user's systemd runs while the user is logged in. To let it run always: loginctl enable-linger"""
which = click.option(
    "--cron/--systemd", "by_cron", default=False, help="Use the user's crontab, or the user's systemd."
)
at = click.DateTime(["%H:%M"])


@click.group()
def schedule() -> None:
    """Run `darkroom retrain` every day, by cron or systemd."""


@schedule.command()
@which
@click.option("--at", type=at, default="02:30", metavar="HH:MM", help="Time of day in UTC.")
@click.option("--dry-run", is_flag=True, help="Print it and change nothing; needs neither cron nor systemd.")
def install(by_cron: bool, at: datetime, dry_run: bool) -> None:
    """Install the schedule and print it.

    An older schedule of this project is replaced.
    """
    wanted, shown = schedules.Schedule(environment.read().root, at.time()), ""
    if by_cron:
        present = schedules.read_crontab() if not dry_run or shutil.which("crontab") else ""
        crontab = wanted.merged(present)
        shown = schedules.split(crontab, wanted.root)[1]
        if not dry_run:
            schedules.run("crontab", "-", stdin=crontab)
    else:
        schedules.unit_files(wanted.root)  # raises if they belong to another project
        if not dry_run:
            schedules.run("systemctl", "--version")  # raises if it is not installed
        for path, text in wanted.units().items():
            shown += f"# {path}\n{text}\n"
            if not dry_run:
                write_text(path, text)
        if not dry_run:
            shown += schedules.systemctl("daemon-reload", f"enable --now {schedules.TIMER}")
    click.echo(shown + NOTE)


@schedule.command()
@which
def remove(by_cron: bool) -> None:
    """Remove this project's schedule; a run in progress continues."""
    root = environment.read().root
    others, block = schedules.split(schedules.read_crontab(), root) if by_cron else ("", "")
    units = [] if by_cron else schedules.unit_files(root)
    if block:
        schedules.run("crontab", "-", stdin=others)
    if units:
        for path in (*units, environment.user_units() / "timers.target.wants" / schedules.TIMER):
            path.unlink(missing_ok=True)
        click.echo(schedules.systemctl(f"stop {schedules.TIMER}", "daemon-reload"), nl=False)
    click.echo("removed" if block or units else "this project has no such schedule")


@schedule.command()
def show() -> None:
    """Show this project's schedules."""
    root = environment.read().root
    block = schedules.split(schedules.read_crontab(), root)[1] if shutil.which("crontab") else ""
    units = "".join(f"# {path}\n{path.read_text(encoding='utf-8')}\n" for path in schedules.unit_files(root))
    click.echo(block + units or "no schedule: darkroom schedule install")
