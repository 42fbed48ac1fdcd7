"""`darkroom report`: what this working tree changes, for a pull request."""

from pathlib import Path

import click

from pipeline.environment import read as read_environment


@click.command()
@click.option("--markdown", is_flag=True, help="Print Markdown, as for a comment on a pull request.")
@click.option("--against", default="main", help="A git revision, or champion: the champions in MLflow.")
@click.option(
    "--pictures",
    type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
    help="Copy the pictures of both sides into this folder, which is to be next to the report.",
)
@click.option(
    "--images", default="", help="The URL at which this folder will be, if it is not next to the report."
)
def report(markdown: bool, against: str, pictures: Path | None, images: str) -> None:
    """Compare the results here with those of a branch or champion.

    The report is for a pull request; --against takes any git revision. It shows which models are better or
    worse by more than the intervals, the gates, and what changed in settings and data. Nothing is trained,
    measured or checked out: it reads metrics/, params.yaml, dvc.lock and the revision in git.
    """
    from rich.console import Console
    from rich.markdown import Markdown

    from pipeline.pull_request.report import write

    text = write(read_environment(), against, pictures, images)
    if markdown:
        click.echo(text)
    else:
        Console().print(Markdown(text))
