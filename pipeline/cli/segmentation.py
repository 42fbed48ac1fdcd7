"""`darkroom segment`: label the pixels of pictures."""

from pathlib import Path

import click

from pipeline.cli.inference import (
    a_model,
    free_path,
    load_model,
    models,
    new_folder,
    read_pictures,
    refuse_unread,
    write_picture,
)
from pipeline.errors import BadInput
from pipeline.files import atomic_write

STRENGTH = 0.5  # of the colours in an overlay


@click.command(epilog=a_model)
@click.argument("paths", nargs=-1, required=True)
@click.option("--model", default="unet", help="The segmentation network to use.")
@click.option("--out", type=new_folder, default="segmented", help="The folder to write.")
@models
def segment(paths: tuple[str, ...], model: str, out: Path, models: Path | None) -> None:
    """Label the pixels of pictures; write masks and overlays.

    A mask is a PNG file with a palette, whose values are the numbers of the classes. It has the model's
    resolution. The folder OUT/overlays has the pictures with the colours of the classes on them.

    PATHS: files, folders, or - for a list of them on standard input. A picture that cannot be read is
    reported on standard error; the others are segmented, and the exit code is 2.
    """
    import numpy as np
    import torch
    from PIL import Image

    from pipeline.core.image_grid import to_bytes
    from pipeline.layers.label_maps import answers, colors, paint

    task, card, _ = load_model(model, models, "segment", "use unet")
    count = task.spec["mask"].num_values
    palette = [value for color in colors(count) for value in color]
    names, pixels = card["class_names"], np.zeros(count, np.int64)
    unread: list[BadInput] = []
    written = 0
    for files, images in read_pictures(paths, task, card, unread):
        with torch.inference_mode():
            masks = answers(task.segment, images)
        drawn = torch.where(masks[:, None] > 0, paint(masks, count), images)
        overlays = to_bytes((images + STRENGTH * (drawn - images)).numpy())
        pixels += np.bincount(masks.flatten().numpy(), minlength=count)
        for path, mask, overlay in zip(files, masks.byte().numpy(), overlays, strict=True):
            target = free_path(out, path.stem)
            picture = Image.fromarray(mask)
            picture.putpalette(palette)
            with atomic_write(target) as temporary:
                picture.save(temporary, format="PNG")
            write_picture(out / "overlays" / target.name, overlay)
        written += len(files)
    if written:
        for name, number in zip(names, pixels.tolist(), strict=True):
            click.echo(f"{name}\t{number / pixels.sum():.1%} of the pixels")
        click.echo(f"{written} masks -> {out}, overlays -> {out / 'overlays'}")
    refuse_unread(unread)
