"""`darkroom retrain` and `darkroom history`."""

import click

from pipeline.environment import read as read_environment


@click.command()
@click.option("--dry-run", is_flag=True, help="Print what would be done, and change nothing.")
@click.option("--readmit", help="Check quarantined pictures again whose reason or hash contains TEXT.")
def retrain(dry_run: bool, readmit: str | None) -> None:
    """Train on new pictures; promote a model that is not worse.

    The new pictures at retrain.watch (params.yaml) are checked. New models are compared with the champions
    and promoted or refused. A retraining that was killed continues. To run this on a schedule: darkroom
    schedule install.

    Exit codes: 0 promoted, refused or nothing new; 1 failed; 2 bad input; 75 another retraining runs.
    """
    from pipeline.retraining.retrain import retrain

    retrain(read_environment(), dry_run, readmit or "")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def history(as_json: bool) -> None:
    """Show promotions, rollbacks and refusals with their reasons.

    The oldest is first; times are in UTC.
    """
    import json

    from rich.console import Console
    from rich.table import Table

    from pipeline.retraining.journal import Journal
    from pipeline.tracking import connection, promotion

    environment = read_environment()
    rows = promotion.alias_history(*connection.connect(environment))
    for run in Journal(environment.root).past():
        if run.decision == "refused":
            row = {"time": run.ended, "event": "refused", "model": "", "from": "", "to": ""}
            rows.append(row | {"reason": run.explanation, "retraining": run.name})
    rows.sort(key=lambda row: row["time"])
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    table = Table("time (UTC)", "event", "model", "version", "reason", box=None, header_style="bold")
    for row in rows:
        versions = f"{row['from'] or 'none'} → {row['to']}" if row["to"] else ""
        table.add_row(row["time"].replace("T", " "), row["event"], row["model"], versions, row["reason"])
    Console().print(table)
