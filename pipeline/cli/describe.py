"""`darkroom describe`: a data set in Croissant."""

from pathlib import Path

import click

from pipeline.environment import read as read_environment


@click.command()
@click.argument("dataset", default="images")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False, resolve_path=True),
    help="The file to write  [default: croissant-DATASET.json]",
)
@click.option("--licence", default="", help="Of your own pictures: a name or URL.")
def describe(dataset: str, out: Path | None, licence: str) -> None:
    """Describe a data set in Croissant (JSON-LD).

    It has the files with their hashes, fields, classes, splits and sources. Its paths are relative to the
    project's root. DATASET: images, clips or scenes. This needs the packages of an extra:
    pip install 'darkroom[outward]'.
    """
    from pipeline.data.croissant import describe
    from pipeline.files import write_json

    out = out or Path(f"croissant-{dataset}.json").resolve()
    write_json(out, describe(read_environment().root, dataset, licence))
    click.echo(f"{dataset} -> {out}")
