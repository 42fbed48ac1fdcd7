"""`darkroom explain`: what in a picture speaks for a class."""

import math
from pathlib import Path

import click

from pipeline.cli.inference import (
    a_model,
    choose_classes,
    file,
    load_model,
    models,
    number,
    read_pictures,
    refuse_unread,
)
from pipeline.errors import BadInput

METHODS = click.Choice(["gradients", "grad-cam", "occlusion"])
MOST = 100  # pictures in a sheet


@click.command(epilog=a_model)
@click.argument("paths", nargs=-1, required=True)
@click.option("--model", default="cnn", help="The classifier to explain.")
@click.option(
    "--method", "chosen", type=METHODS, multiple=True, help="A method; may be repeated. Default: all."
)
@click.option("--label", help="The class to explain  [default: the most probable one of each picture]")
@click.option("--seed", type=number(0), default=0, help="Of the shuffled weights of the sanity check.")
@click.option("--out", type=file, default="explained.png", help="The PNG to write.")
@models
def explain(
    paths: tuple[str, ...],
    model: str,
    chosen: tuple[str, ...],
    label: str | None,
    seed: int,
    out: Path,
    models: Path | None,
) -> None:
    """Draw what in pictures speaks for their class and against it.

    OUT has a row for each picture: the picture as the model sees it, and a map for each method. gradients
    are Integrated Gradients, grad-cam is Grad-CAM, and occlusion hides squares of the picture. Prints the
    class and its probability, and for each method how similar its maps are to those of networks with
    shuffled weights: where they are alike, the map says little about what was learned.

    PATHS: files, folders, or - for a list of them on standard input; at most 100 pictures. A picture that
    cannot be read is reported on standard error; the others are explained, and the exit code is 2.
    """
    import torch

    from pipeline.evaluation import explanation, figures

    task, card, _ = load_model(model, models, "classify", "use cnn")
    names = card["class_names"]
    explainer = explanation.Explainer(task)
    if unable := [method for method in chosen if method not in explainer.methods]:
        what = f"{model} has no gradients, or no layer with maps of more than one value"
        remedy = f"use {' or '.join(explainer.methods)}"
        raise BadInput(what, where=f"--method {unable[0]}", remedy=remedy)
    methods = list(dict.fromkeys(chosen)) or explainer.methods
    wanted = choose_classes(names, (label,))[0] if label is not None else None
    unread: list[BadInput] = []
    files, parts = list[Path](), list[torch.Tensor]()
    for some, decoded in read_pictures(paths, task, card, unread):
        files, parts = [*files, *some], [*parts, decoded]
        if len(files) > MOST:
            raise BadInput(f"more than {MOST} pictures", where="PATHS", remedy="explain some at a time")
    if not files:
        return refuse_unread(unread)
    images = torch.cat(parts)
    with torch.inference_mode():
        shares = task.classify(images).softmax(1)
    labels = shares.argmax(1) if wanted is None else torch.full((len(files),), wanted)
    titles = [f"{names[index]}, {row[index]:.1%}" for index, row in zip(labels.tolist(), shares.tolist())]
    drawn = explanation.sheet(explainer, images, labels, methods)
    figures.save_grid(drawn, out, explanation.headings(methods), titles, explanation.LEGEND)
    for path, index, row in zip(files, labels.tolist(), shares.tolist(), strict=True):
        click.echo(f"{click.format_filename(path)}\t{names[index]} {row[index]:.4f}")
    for method, found in explanation.sanity_check(explainer, images, labels, methods, seed).items():
        values = {
            "rank correlation": found.rank_correlation,
            "of absolute values": found.of_absolute_values,
            "SSIM": found.ssim,
        }
        known = (f"{key} {value:.2f}" for key, value in values.items() if not math.isnan(value))
        name, source = explanation.METHODS[method], explainer.source(method)
        click.echo(f"{name}, computed from {source}: {found.reading} ({', '.join(known)})")
    click.echo(f"{len(files)} pictures and their maps -> {out}")
    refuse_unread(unread)
