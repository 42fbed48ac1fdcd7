"""`darkroom restore`: pass pictures through an autoencoder, or have a Transformer complete them."""

from pathlib import Path
from typing import Any

import click

from pipeline.cli.inference import (
    a_model,
    file,
    free_path,
    load_model,
    models,
    new_folder,
    number,
    read_pictures,
    refuse_unread,
    write_picture,
)
from pipeline.errors import BadInput

PAIRS = "pairs.png"


@click.command(epilog=a_model)
@click.argument("paths", nargs=-1, required=True)
@click.option("--model", help="The model to use  [default: ae; with --task complete: transformer]")
@click.option(
    "--task",
    "damage",
    type=click.Choice(["denoise", "inpaint", "upscale", "complete"]),
    help="What is to be repaired.",
)
@click.option("--mask", type=file, help="A picture, lighter than half where to paint: for inpaint, complete.")
@click.option("--count", type=number(1, 100), default=1, help="With --task complete: answers per picture.")
@click.option("--seed", type=number(0), default=0, help="The same seed gives the same answers.")
@click.option("--out", type=new_folder, default="restored", help="The folder to write.")
@models
def restore(
    paths: tuple[str, ...],
    model: str | None,
    damage: str | None,
    mask: Path | None,
    count: int,
    seed: int,
    out: Path,
    models: Path | None,
) -> None:
    """Restore, reconstruct or complete pictures.

    A PNG is written for each. Without --task pictures are passed through an autoencoder.
    With --task the model must have been trained to repair such damage. To upscale, pictures are read at half
    the model's resolution. In-painting changes no pixel where the mask is darker than half (128 of
    255). The mask must have the proportions of the pictures. A Transformer completes the lower half of a
    picture, or what the mask says, in --count different ways. Without a mask the first is the answer of the
    served model to the same seed.

    PATHS: files, folders, or - for a list of them on standard input. The folder OUT also gets pairs.png,
    which shows the pictures before and after. A picture that cannot be read is reported on standard error;
    the others are restored, and the exit code is 2.
    """
    import torch

    from pipeline.core.image_grid import to_bytes, write_png
    from pipeline.core.noise import Noise
    from pipeline.layers.damage import enlarge, half_side, hide, upper_half

    completes = damage == "complete"
    if not completes and (damage == "inpaint") != (mask is not None):
        remedy = "give both, or none"
        raise BadInput("--task inpaint and --mask belong together", where="darkroom restore", remedy=remedy)
    if count > 1 and not completes:
        raise BadInput("a restoration has one answer", where="--count", remedy="use --task complete")
    model = model or ("transformer" if completes else "ae")
    able = ("complete", "use transformer") if completes else ("reconstruct", "use ae or vae")
    task, card, _ = load_model(model, models, *able)
    if damage and not completes and damage not in getattr(task, "restorations", ()):
        remedy = f"train an autoencoder for it (docs/models.md): ae.model.objectives: [{damage}]"
        raise BadInput(f"this model was not trained to {damage}", where=model, remedy=remedy)
    size = task.spec.size
    known = _known_pixels(mask, size, card) if mask else None
    pairs: list[Any] = []  # of the first batch: input, answers, input, ... images (C, H, W)
    total = 0
    unread: list[BadInput] = []
    side = half_side(size) if damage == "upscale" else size
    for files, images in read_pictures(paths, task, card, unread, side):
        if mask:
            _check_shapes(mask, files)
        if completes:
            known = upper_half(images) if known is None else known
        images = enlarge(images, size) if known is None else hide(images, known)
        with torch.inference_mode():
            if completes:
                ones = images.split(1)  # so that an answer does not depend on the other pictures
                noises = [Noise.whole(seed, 1, step=number) for number in range(count)]
                answers = [torch.cat([task.complete(one, known, noise) for one in ones]) for noise in noises]
            else:
                answers = [task.restore(images, known) if damage else task.reconstruct(images)]
        for answer in answers:
            for path, image in zip(files, to_bytes(answer.numpy()), strict=True):
                write_picture(free_path(out, path.stem, (PAIRS,)), image)
        pairs = pairs or list(to_bytes(torch.stack([images, *answers], 1).flatten(0, 1).numpy()))
        total += len(files)
    if pairs:
        import numpy as np

        write_png(out / PAIRS, np.stack(pairs), 8 if count == 1 else 1 + count)
        click.echo(f"{total} pictures and {PAIRS} -> {out}")
    refuse_unread(unread)


def _known_pixels(mask: Path, size: int, card: dict[str, Any]) -> Any:
    """The picture ``mask`` as a tensor (1, 1, H, W): 1 where it is darker than half."""
    import torch

    from pipeline.data.images import BrokenImage, decode

    try:
        pixels = decode(mask.read_bytes(), 1, size, card.get("fit", "crop"))
    except (BrokenImage, OSError) as error:
        raise BadInput(str(error), where=f"--mask {mask}", remedy="name a picture") from None
    return torch.from_numpy(pixels < 128).float()[None]


def _check_shapes(mask: Path, files: list[Path]) -> None:
    """Raise ``BadInput`` if a file has other proportions than the mask, whose pixels would be others."""
    from pipeline.data.images import upright_size

    width, height = upright_size(mask.read_bytes())
    for path in files:
        size = upright_size(path.read_bytes())
        if abs(width * size[1] - height * size[0]) > max(size):  # beyond rounding
            what = f"has {size[0]} x {size[1]} pixels, the mask {width} x {height}: other proportions"
            raise BadInput(what, where=str(path), remedy="give a mask with the proportions of the picture")
