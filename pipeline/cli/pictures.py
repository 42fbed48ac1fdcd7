"""Trained models put to use on pictures: generate, classify, restore."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from pipeline.errors import BadInput
from pipeline.files import whole_file

BATCH = 256
PAIRS = "pairs.png"

models = click.option("--models", type=click.Path(path_type=Path), default="models", show_default=True, help="Where trained models lie.")


@click.command()
@click.argument("model")
@click.option("--count", type=click.IntRange(1, 10_000), default=64, show_default=True, help="How many pictures.")
@click.option("--label", "labels", multiple=True, help="A class to draw, by name; may be repeated. Default: each in turn.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The same seed gives the same pictures.")
@click.option("--columns", type=click.IntRange(1, 100), default=None, help="Pictures in a row.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=None, help="The PNG to write  [default: MODEL.png]")
@models
def generate(model: str, count: int, labels: tuple[str, ...], seed: int, columns: int | None, out: Path | None, models: Path) -> None:
    """Draw new pictures with MODEL (gan, vae or ae) into one PNG."""
    import torch

    from pipeline.core import model_files
    from pipeline.core.image_grid import to_bytes, write_png
    from pipeline.core.noise import Noise

    task, card = model_files.load(models / model), model_files.read_card(models / model)
    wanted = _classes(card["class_names"], labels)
    chosen = torch.tensor([wanted[index % len(wanted)] for index in range(count)])
    with torch.inference_mode():
        drawn = task.generate(chosen, count, Noise.whole(seed, count, "generate"))
    if drawn is None:
        raise BadInput("this model does not generate pictures", where=model, remedy="use gan, vae or ae")
    out = out or Path(f"{model}.png")
    write_png(out, to_bytes(drawn.numpy()), columns or (len(wanted) if 4 <= len(wanted) <= 20 else 8))
    click.echo(f"{count} pictures -> {out}")


@click.command()
@click.argument("paths", nargs=-1, required=True)
@click.option("--model", default="cnn", show_default=True)
@click.option("--top", type=click.IntRange(1, 100), default=1, show_default=True, help="How many classes for each picture.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@models
def classify(paths: tuple[str, ...], model: str, top: int, as_json: bool, models: Path) -> None:
    """Print the class and its probability for each picture in PATHS: files, folders, or - for a list on standard input."""
    import torch

    from pipeline.core import model_files

    task, names = model_files.load(models / model), model_files.read_card(models / model)["class_names"]
    for files, images in _read(paths, task):
        with torch.inference_mode():
            logits = task.classify(images)
        if logits is None:
            raise BadInput("this model does not classify", where=model, remedy="use cnn")
        for file, row in zip(files, logits.softmax(1), strict=True):
            best = row.topk(min(top, len(names)))
            answers = [{"class": names[index], "probability": round(value, 6)} for value, index in zip(*map(torch.Tensor.tolist, best))]
            columns = [click.format_filename(file), *(f"{answer['class']} {answer['probability']:.4f}" for answer in answers)]
            click.echo(json.dumps({"path": str(file), "classes": answers}) if as_json else "\t".join(columns))


@click.command()
@click.argument("paths", nargs=-1, required=True)
@click.option("--model", default="ae", show_default=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default="restored", show_default=True, help="The folder to write.")
@models
def restore(paths: tuple[str, ...], model: str, out: Path, models: Path) -> None:
    """Pass the pictures in PATHS through an autoencoder: a PNG each in the folder OUT, and pairs.png with both side by side."""
    import torch

    from pipeline.core import model_files
    from pipeline.core.image_grid import to_bytes, write_png

    task = model_files.load(models / model)
    pairs: list[Any] = []  # images (C, H, W): as given, as restored, of the first batch
    count = 0
    for files, images in _read(paths, task):
        with torch.inference_mode():
            restored = task.reconstruct(images)
        if restored is None:
            raise BadInput("this model does not reconstruct", where=model, remedy="use ae or vae")
        for file, image in zip(files, to_bytes(restored.numpy()), strict=True):
            _write_picture(_free(out, file.stem), image)
        pairs = pairs or list(to_bytes(torch.stack([images, restored], 1).flatten(0, 1).numpy()))
        count += len(files)
    import numpy as np

    write_png(out / PAIRS, np.stack(pairs), 8)
    click.echo(f"{count} pictures and {PAIRS} -> {out}")


def _classes(names: list[str], labels: tuple[str, ...]) -> list[int]:
    unknown = [label for label in labels if label not in names]
    if unknown:
        raise BadInput("no such class", where=f"--label {unknown[0]}", remedy=f"choose from: {', '.join(names)}"[:300])
    return [names.index(label) for label in labels] or list(range(len(names)))


def _files(paths: tuple[str, ...]) -> list[Path]:
    files: list[Path] = []
    for given in paths:
        for text in os.fsdecode(sys.stdin.buffer.read()).splitlines() if given == "-" else [given]:
            try:
                files += _files_at(text) if text.strip() else []
            except OSError as error:  # a name that is too long, say
                raise BadInput(error.strerror or "cannot be read", where=text[:200], remedy="check the path") from None
    if not files:
        raise BadInput("no picture was named", where="PATHS", remedy="name files or folders, or send paths to standard input with -")
    return files


def _files_at(text: str) -> list[Path]:
    from pipeline.data.images import SUFFIXES

    path = Path(text)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise BadInput("no such file or folder", where=text[:200], remedy="check the path")
    found = sorted(file for file in path.rglob("[!.]*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not found:
        raise BadInput("holds no picture", where=text, remedy=f"accepted are {', '.join(sorted(SUFFIXES))}")
    return found


def _read(paths: tuple[str, ...], task: Any) -> Any:
    """The pictures of ``paths`` in batches: (files, images (N, C, H, W) in [0, 1]), fitted to what the model takes."""
    import numpy as np

    from pipeline.core.task import Batch
    from pipeline.data.images import BrokenImage, decode

    files = _files(paths)
    for start in range(0, len(files), BATCH):
        some = files[start : start + BATCH]
        decoded = []
        for file in some:
            try:
                decoded.append(decode(file.read_bytes(), task.spec.channels, task.spec.size))
            except (BrokenImage, OSError) as error:
                raise BadInput(str(error), where=str(file), remedy="leave it out or replace it by a whole PNG or JPEG") from None
        yield some, Batch.of(np.stack(decoded), np.zeros(len(some), np.int64)).images


def _free(folder: Path, stem: str) -> Path:
    """A name in ``folder`` that is not taken by another picture of the same stem."""
    path, number = folder / f"{stem}.png", 1
    while path.exists() or path.name == PAIRS:
        path, number = folder / f"{stem}-{number}.png", number + 1
    return path


def _write_picture(path: Path, image: Any) -> None:
    from PIL import Image

    with whole_file(path) as beside:
        Image.fromarray(image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)).save(beside, format="PNG")
