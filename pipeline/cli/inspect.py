"""`darkroom inspect`: what a folder of pictures holds."""

import sys
from pathlib import Path

import click

from pipeline import environment
from pipeline.errors import EXIT_FAILED


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), help="Also write a page with pictures."
)
def inspect(folder: Path, as_json: bool, html: Path | None) -> None:
    """Show what a folder of pictures holds, and its faults.

    FOLDER: a folder or archive. Every picture is decoded, and nothing is changed. It shows splits, classes,
    sizes, formats, what is skipped and why, all faults, near-duplicates, outliers, labels that a trained
    classifier doubts, and the lines for params.yaml that fit.

    Exit code 0 if it can be trained on, 1 if there are faults that stop that.
    """
    import json

    from pipeline.data.transfer import line_printer
    from pipeline.inspection.inspect import inspect as examine
    from pipeline.inspection.text import text

    show = line_printer()
    found = examine(
        folder,
        environment.find_project(Path()),
        lambda done, total: show(f"inspected {done:,} of {total:,} pictures"),
    )
    click.echo(json.dumps(found.report, indent=2) if as_json else text(found.report), nl=as_json)
    if html:
        from pipeline.inspection import page

        page.write(found, folder, html)
        click.echo(f"the page: {html}", err=True)
    if not found.trainable:
        sys.exit(EXIT_FAILED)
