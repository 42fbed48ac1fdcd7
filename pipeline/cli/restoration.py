"""`darkroom restore`: pass pictures through an autoencoder."""

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
    read_pictures,
    refuse_unread,
    write_picture,
)
from pipeline.errors import BadInput

PAIRS = "pairs.png"


@click.command(epilog=a_model)
@click.argument("paths", nargs=-1, required=True)
@click.option("--model", default="ae", help="The autoencoder to use.")
@click.option(
    "--task", "damage", type=click.Choice(["denoise", "inpaint", "upscale"]), help="What is to be repaired."
)
@click.option("--mask", type=file, help="With --task inpaint: a picture, lighter than half where to paint.")
@click.option("--out", type=new_folder, default="restored", help="The folder to write.")
@models
def restore(
    paths: tuple[str, ...], model: str, damage: str | None, mask: Path | None, out: Path, models: Path | None
) -> None:
    """Pass pictures through an autoencoder; write a PNG for each.

    With --task the model must have been trained to repair such damage. To upscale, pictures are read at half
    the model's resolution. In-painting changes no pixel where the mask is darker than half (128 of
    255). The mask must have the proportions of the pictures.

    PATHS: files, folders, or - for a list of them on standard input. The folder OUT also gets pairs.png,
    which shows the pictures before and after. A picture that cannot be read is reported on standard error;
    the others are restored, and the exit code is 2.
    """
    import torch

    from pipeline.core.image_grid import to_bytes, write_png
    from pipeline.layers.damage import enlarge, half_side, hide

    if (damage == "inpaint") != (mask is not None):
        remedy = "give both, or none"
        raise BadInput("--task inpaint and --mask belong together", where="darkroom restore", remedy=remedy)
    task, card, _ = load_model(model, models, "reconstruct", "use ae or vae")
    if damage and damage not in getattr(task, "restorations", ()):
        remedy = f"train an autoencoder for it (README, Autoencoders): ae.model.objectives: [{damage}]"
        raise BadInput(f"this model was not trained to {damage}", where=model, remedy=remedy)
    size = task.spec.size
    known = _known_pixels(mask, size, card) if mask else None
    pairs: list[Any] = []  # of the first batch: input, restored, input, ... images (C, H, W)
    count = 0
    unread: list[BadInput] = []
    side = half_side(size) if damage == "upscale" else size
    for files, images in read_pictures(paths, task, card, unread, side):
        if mask:
            _check_shapes(mask, files)
        images = enlarge(images, size) if known is None else hide(images, known)
        with torch.inference_mode():
            restored = task.restore(images, known) if damage else task.reconstruct(images)
        for path, image in zip(files, to_bytes(restored.numpy()), strict=True):
            write_picture(free_path(out, path.stem, (PAIRS,)), image)
        pairs = pairs or list(to_bytes(torch.stack([images, restored], 1).flatten(0, 1).numpy()))
        count += len(files)
    if pairs:
        import numpy as np

        write_png(out / PAIRS, np.stack(pairs), 8)
        click.echo(f"{count} pictures and {PAIRS} -> {out}")
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
