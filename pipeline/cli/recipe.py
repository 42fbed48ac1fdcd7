"""`darkroom recipe`: settings for a data set, with what they reach."""

import click

from pipeline.tracking.rerun import as_text, leaves


@click.command()
@click.argument("name", required=False)
@click.option("--dry-run", is_flag=True, help="Show what would change, write nothing.")
@click.option("--force", is_flag=True, help="Also replace settings of params.yaml that are in no commit.")
def recipe(name: str | None, dry_run: bool, force: bool) -> None:
    """Write the settings of a recipe into params.yaml.

    Without NAME it lists the recipes: what they are for, how long they take and what they reach, as measured.
    All settings of data, models and evaluation become those of the recipe; comments stay.
    """
    from rich.console import Console
    from rich.table import Table

    from pipeline import recipes
    from pipeline.params import read_file

    if name is None:
        table = Table("recipe", "for", "hardware", "time", "reaches", box=None, header_style="bold")
        for each in recipes.names():
            found = recipes.read(each)
            table.add_row(each, found.description, found.hardware, found.time, found.reaches)
        Console().print(table)
        return
    found = recipes.read(name)
    before = leaves(read_file())
    changed = recipes.apply(name, dry_run=dry_run, force=force)
    for change in changed:
        old, new = (as_text(before[change.key]) if change.key in before else "none"), as_text(change.value)
        click.echo(f"{change.key}: {old} -> {'none' if change.kind == '~' else new}")
    click.echo(f"{found.description}. Time: {found.time}. Reaches: {found.reaches} ({found.hardware}).")
    if not changed:
        click.echo("params.yaml has these settings already; next: dvc repro")
    else:
        click.echo("nothing was written" if dry_run else f"{len(changed)} settings written; next: dvc repro")
