"""`darkroom export`: a model for other programs."""

from pathlib import Path

import click

from pipeline.cli.inference import a_model, file, load_model, models
from pipeline.errors import BadInput

KINDS = ("classify", "generate", "reconstruct")


@click.command(epilog=a_model)
@click.argument("model")
@click.option("--onnx", "path", type=file, required=True, help="The ONNX file to write.")
@click.option(
    "--what", type=click.Choice(KINDS), help="What it computes  [default: the first that the model can]"
)
@models
def export(model: str, path: Path, what: str | None, models: Path | None) -> None:
    """Write MODEL as an ONNX file for other programs.

    classify: images (N, C, H, W) in [0, 1] -> probabilities. generate: labels and random numbers -> images.
    reconstruct: images -> images. The file also holds the names of the classes and the SHA-256 of the
    weights. It is written if ONNX Runtime gives the same answers. This needs the packages of an extra: pip
    install 'darkroom[onnx]'.
    """
    from pipeline.cli import onnx_export
    from pipeline.core.abilities import Ability

    task, card, found = load_model(model, models, what, "use a model that can, or another value of --what")
    able = [kind for kind in KINDS if Ability(kind) in found]
    if not able:
        what, remedy = f"this model does not {', '.join(KINDS)}", "name another model"
        raise BadInput(what, where=model, remedy=remedy)
    chosen = Ability(what or able[0])
    checked = onnx_export.export(task, chosen, Ability.USES_LABELS in found, card, path)
    click.echo(f"{model}, {chosen} -> {path}\n{checked}")
    if others := [kind for kind in able if kind != chosen]:
        click.echo(f"It can also {' and '.join(others)}: --what {others[0]}")
