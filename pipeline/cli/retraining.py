"""The commands retrain and history."""

import click

from pipeline import environment


@click.command()
@click.option("--dry-run", is_flag=True, help="Print what would be done, and change nothing.")
@click.option(
    "--readmit",
    metavar="TEXT",
    default="",
    help="Check quarantined pictures again whose reason or hash contains TEXT.",
)
def retrain(dry_run: bool, readmit: str) -> None:
    """Train on new pictures; promote a model that is not worse.

    New pictures are looked for at retrain.watch of params.yaml and checked. New models are compared with the
    champions and promoted or refused. A retraining that was killed continues. Run it on a schedule: darkroom
    schedule install.

    Exit codes: 0 promoted, refused or nothing new; 1 failed; 2 bad input; 75 another retraining runs.
    """
    from pipeline.retraining.retrain import retrain as once

    once(environment.read(), dry_run, readmit)


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

    where = environment.read()
    deeds = promotion.alias_history(*connection.connect(where))
    refused = [
        {
            "time": one.ended,
            "deed": "refused",
            "model": "",
            "from": "",
            "to": "",
            "reason": one.explanation,
            "occasion": one.name,
        }
        for one in Journal(where.root).past()
        if one.decision == "refused"
    ]
    rows = sorted([*deeds, *refused], key=lambda row: row["time"])
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    shown = Table("time (UTC)", "deed", "model", "version", "reason", box=None, header_style="bold")
    for row in rows:
        versions = f"{row['from'] or 'none'} → {row['to']}" if row["to"] else ""
        shown.add_row(row["time"].replace("T", " "), row["deed"], row["model"], versions, row["reason"])
    Console().print(shown)
