"""`darkroom forecast`: the next frames of clips."""

from pathlib import Path
from typing import Any

import click

from pipeline.cli.inference import a_model, load_model, models, new_folder, number, write_picture

ANIMATION = "forecast.gif"


@click.command(epilog=a_model)
@click.argument("path", type=click.Path(path_type=Path, exists=True))
@click.option("--model", default="rcnn", help="The model to use.")
@click.option("--count", type=number(1, 1000), help="How many frames  [default: as many as in the training]")
@click.option("--out", type=new_folder, default="forecast", help="The folder to write.")
@models
def forecast(path: Path, model: str, count: int | None, out: Path, models: Path | None) -> None:
    """Predict the frames that follow those of a clip.

    Writes a PNG for each, and an animation.

    PATH: a folder of numbered frames, an animated GIF, WebP or APNG, an .npy or .npz file of clips
    (N, T, H, W[, C]), or a folder of such clips. The model reads the last frames of a clip, as many as in its
    training. The animation shows them, too. Of several clips each gets its own folder in OUT. With a fault in
    any of the clips nothing is written, and the exit code is 2.
    """
    import torch

    from pipeline.core.image_grid import to_bytes
    from pipeline.data.clips.folder import check, find_clips
    from pipeline.data.findings import Findings
    from pipeline.evaluation.figures import save_animation

    task, card, _ = load_model(model, models, "forecast", "use rcnn")
    findings = Findings()
    clips = find_clips(path, findings)
    check(clips, 1, findings)
    findings.refuse(str(path))
    num_frames = task.spec["clip"].shape[0]
    known = getattr(task, "input_frames", num_frames // 2)
    for name, read in clips.items():
        frames = _pixels(read, task, card.get("fit", "crop"))[-known:][None]
        with torch.inference_mode():
            following = task.forecast(frames, count or num_frames - known)
        folder = out / name if len(clips) > 1 else out
        for place, image in enumerate(to_bytes(following[0].numpy()), 1):
            write_picture(folder / f"{place:04d}.png", image)
        save_animation(torch.cat([frames, following], 1)[0][:, None, None], folder / ANIMATION)
    click.echo(f"{len(clips)} x {count or num_frames - known} new frames -> {out}")


def _pixels(read: Any, task: Any, fit: Any) -> Any:
    """The frames of a clip as a tensor (T, C, H, W) in [0, 1], in the model's shape."""
    import numpy as np
    import torch

    from pipeline.data.images import resize_array

    _, channels, side, _ = task.spec["clip"].shape
    return torch.from_numpy(np.stack([resize_array(image, channels, side, fit) for image in read()])) / 255
