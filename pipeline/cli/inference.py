"""`darkroom generate` and `classify`: use trained models."""

import csv
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from pipeline import environment
from pipeline.cli.project import find as find_project
from pipeline.errors import BadInput
from pipeline.files import atomic_folder, atomic_write

BATCH = 256
REGISTERED = re.compile(r"[^/@]+(@[^/@]+|/\d+)")  # NAME@ALIAS or NAME/VERSION

a_model = "MODEL: a name in the folder of models, or NAME@ALIAS or NAME/VERSION of MLflow's registry."
number, file, folder = click.IntRange, click.Path(path_type=Path, dir_okay=False), click.Path(path_type=Path)
new_folder = click.Path(path_type=Path, file_okay=False)
models_help = "The folder of trained models  [default: models, in the project]"
models = click.option("--models", type=folder, help=models_help)


@click.command(epilog=a_model)
@click.argument("model")
@click.option("--count", type=number(1, 10_000), default=64, help="How many pictures.")
@click.option(
    "--label", "labels", multiple=True, help="A class to draw; may be repeated. Default: each in turn."
)
@click.option("--seed", type=number(0), default=0, help="The same seed gives the same pictures.")
@click.option("--columns", type=number(1, 100), help="Pictures in a row.")
@click.option("--out", type=file, help="The PNG to write  [default: MODEL.png]")
@click.option(
    "--folder", type=new_folder, help="Write a file for each picture instead, in a folder for each class."
)
@models
def generate(
    model: str,
    count: int,
    labels: tuple[str, ...],
    seed: int,
    columns: int | None,
    out: Path | None,
    folder: Path | None,
    models: Path | None,
) -> None:
    """Draw new pictures with MODEL (gan, vae, ae or transformer).

    They are written into one PNG, or into a new folder.
    """
    import torch

    from pipeline.core.abilities import Ability
    from pipeline.core.image_grid import to_bytes, write_png
    from pipeline.core.noise import Noise

    if folder and (out or columns):
        what, remedy = "--out and --columns are for one PNG", "leave them out, or leave out --folder"
        raise BadInput(what, where=f"--folder {folder}", remedy=remedy)
    if folder and folder.exists() and any(folder.iterdir()):
        raise BadInput("is not empty", where=f"--folder {folder}", remedy="name a new or an empty folder")
    task, card, abilities = load_model(model, models, "generate", "use gan, vae, ae or transformer")
    wanted = choose_classes(card["class_names"], labels)
    chosen = torch.tensor([wanted[index % len(wanted)] for index in range(count)])
    with torch.inference_mode():
        drawn = task.generate(chosen, count, Noise.whole(seed, count, "generate"))
    conditional = Ability.USES_LABELS in abilities
    if labels and not conditional:
        what = f"{model} does not use labels"
        remedy = "leave out --label, or use a model of classes (gan, vae, ae, transformer)"
        raise BadInput(what, where=f"--label {labels[0]}", remedy=remedy)
    if folder:
        classes = _folder_names(card["class_names"]) if conditional else [""] * len(card["class_names"])
        _write_folder(folder, to_bytes(drawn.numpy()), [classes[label] for label in chosen.tolist()])
        click.echo(f"{count} pictures -> {folder}")
        return
    out = out or Path(f"{model.replace('/', '-')}.png")
    columns = columns or (len(wanted) if conditional and 4 <= len(wanted) <= 20 else 8)
    write_png(out, to_bytes(drawn.numpy()), columns)
    click.echo(f"{count} pictures -> {out}")


@click.command(epilog=a_model)
@click.argument("paths", nargs=-1, required=True)
@click.option("--model", default="cnn", help="The classifier to use.")
@click.option("--top", type=number(1, 100), default=1, help="How many classes for each picture.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--csv", "table", type=file, help="Write a table instead, with the probability of each class.")
@models
def classify(
    paths: tuple[str, ...], model: str, top: int, as_json: bool, table: Path | None, models: Path | None
) -> None:
    """Print the class and its probability for each picture.

    PATHS: files, folders, or - for a list of them on standard input. A picture that cannot be read is
    reported on standard error; the others are classified, and the exit code is 2.
    """
    if table and as_json:
        remedy = "leave one of them out"
        raise BadInput("--csv and --json exclude each other", where=f"--csv {table}", remedy=remedy)
    task, card, _ = load_model(model, models, "classify", "use cnn")
    names = card["class_names"]
    unread: list[BadInput] = []
    classified = _classified(paths, task, card, unread)
    if table:
        click.echo(f"{_write_table(table, names, classified)} pictures -> {table}")
    for file, row in classified:
        best = row.topk(min(top, len(names)))
        answers = [
            {"class": names[index], "probability": round(value, 6)}
            for value, index in zip(best.values.tolist(), best.indices.tolist())
        ]
        columns = [
            click.format_filename(file),
            *(f"{answer['class']} {answer['probability']:.4f}" for answer in answers),
        ]
        click.echo(json.dumps({"path": str(file), "classes": answers}) if as_json else "\t".join(columns))
    refuse_unread(unread)


def _classified(
    paths: tuple[str, ...], task: Any, card: dict[str, Any], unread: list[BadInput]
) -> Iterator[tuple[Path, Any]]:
    """Each picture in ``paths``, and the probabilities of its classes (classes,)."""
    import torch

    for files, images in read_pictures(paths, task, card, unread):
        with torch.inference_mode():
            yield from zip(files, task.classify(images).softmax(1), strict=True)


def _write_table(path: Path, names: list[str], classified: Iterable[tuple[Path, Any]]) -> int:
    """Write a CSV file with a row for each picture. Returns their number."""
    count = 0
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["path", "class", "probability", *(f"probability of {name}" for name in names)])
        for file, row in classified:
            count += 1
            shares = [f"{share:.6f}" for share in row.tolist()]
            best = int(row.argmax())
            writer.writerow([click.format_filename(file), names[best], shares[best], *shares])
    return count


def load_model(
    model: str, models: Path | None, needs: str | None, remedy: str
) -> tuple[Any, dict[str, Any], frozenset[Any]]:
    """The task, the card and the abilities of a model in the folder ``models``, the project or the registry.

    Raises ``BadInput`` with the ``remedy`` if it lacks the ability that it ``needs``.
    """
    from pipeline.core import model_files
    from pipeline.core.abilities import Ability, abilities

    with _folder(model, models) as folder:
        task, card = model_files.load(folder), model_files.read_card(folder)
    found = abilities(task)
    if needs and Ability(needs) not in found:
        raise BadInput(f"this model does not {needs}", where=model, remedy=remedy)
    return task, card, found


@contextmanager
def _folder(model: str, models: Path | None) -> Iterator[Path]:
    if models is not None or not REGISTERED.fullmatch(model):
        root = models or Path(os.path.relpath(find_project() / "models"))
        if not (root / model).is_dir():
            raise _unknown(model, root)
        yield root / model
        return
    from pipeline.tracking import promotion

    find_project()  # raises outside a project: MLflow would create a database there
    with tempfile.TemporaryDirectory() as temporary:
        yield promotion.fetch(environment.read(), model, Path(temporary))


def _unknown(model: str, root: Path) -> BadInput:
    from pipeline.core import model_files

    trained = ", ".join(sorted(card.parent.name for card in root.glob(f"[!.]*/{model_files.CARD}"))) or "none"
    remedy = f"train it: dvc repro train-{model}" if model in model_files.names() else f"there are: {trained}"
    remedy += "; or name a registered one: NAME@ALIAS"
    return BadInput("no such trained model", where=str(root / model), remedy=remedy)


def refuse_unread(unread: list[BadInput]) -> None:
    """Raise ``BadInput`` if pictures could not be read. Each of them was already reported."""
    if unread:
        what = f"{len(unread)} {'picture' if len(unread) == 1 else 'pictures'} could not be read"
        remedy = "leave them out, or replace them by whole PNG or JPEG files"
        raise BadInput(what, where=unread[0].where, remedy=remedy)


def choose_classes(names: list[str], labels: tuple[str, ...]) -> list[int]:
    for label in labels:
        if label not in names:
            remedy = f"choose from: {', '.join(names)}"[:300]
            raise BadInput("no such class", where=f"--label {label}", remedy=remedy)
    return [names.index(label) for label in labels] or list(range(len(names)))


def _files(paths: tuple[str, ...]) -> list[Path]:
    listed: list[str] = []
    for path in paths:
        listed += os.fsdecode(sys.stdin.buffer.read()).splitlines() if path == "-" else [path]
    files = [file for text in listed if text.strip() for file in _files_at(text)]
    if not files:
        remedy = "name files or folders, or send paths to standard input with -"
        raise BadInput("no picture was named", where="PATHS", remedy=remedy)
    return files


def _files_at(text: str) -> list[Path]:
    from pipeline.data.images import SUFFIXES

    path, what = Path(text), "no such file or folder"
    try:
        if path.is_file():
            return [path]
        found = sorted(one for one in path.rglob("[!.]*") if one.suffix.lower() in SUFFIXES and one.is_file())
        if found:
            return found
        if path.is_dir():
            remedy = f"accepted are {', '.join(sorted(SUFFIXES))}"
            raise BadInput("has no pictures", where=text, remedy=remedy)
    except OSError as error:  # such as a name that is too long
        what = error.strerror or "cannot be read"
    raise BadInput(what, where=text[:200], remedy="check the path")


def read_pictures(
    paths: tuple[str, ...], task: Any, card: dict[str, Any], unread: list[BadInput], size: int = 0
) -> Iterator[tuple[list[Path], Any]]:
    """Batches of the pictures in ``paths``, in the model's channels: files, images (N, C, H, W).

    Their side has ``size`` pixels; 0: that of the model.

    A picture that cannot be read is reported on standard error and added to ``unread``.
    """
    import numpy as np

    from pipeline.core.task import Batch
    from pipeline.data.images import BrokenImage, decode

    files, framing = _files(paths), (card.get("fit", "crop"), card.get("bit_depth", 16))
    for start in range(0, len(files), BATCH):
        some, decoded = [], []
        for file in files[start : start + BATCH]:
            try:
                decoded.append(
                    decode(file.read_bytes(), task.spec.channels, size or task.spec.size, *framing)
                )
                some.append(file)
            except (BrokenImage, OSError) as error:
                unread.append(BadInput(str(error), where=click.format_filename(file)))
                click.echo(f"error: {unread[-1]}", err=True)
        if some:
            yield some, Batch.load({"image": np.stack(decoded)}, task.spec).images


def _folder_names(names: list[str]) -> list[str]:
    """Names of classes as names of folders: without characters that some systems refuse."""
    plain = [re.sub(r'[/\\:*?"<>|\x00-\x1f]|^\.+', "-", name) for name in names]
    numbered = [f"{number}-{name}" for number, name in enumerate(plain)]
    return plain if len({name.casefold() for name in plain}) == len(names) else numbered


def _write_folder(folder: Path, images: Any, classes: list[str]) -> None:
    """Write ``images`` (N, C, H, W), uint8, as PNG files, each into the folder of its class."""
    with atomic_folder(folder.resolve()) as temporary:
        for number, (image, name) in enumerate(zip(images, classes, strict=True)):
            (temporary / name).mkdir(exist_ok=True)
            write_picture(temporary / name / f"{number:05d}.png", image)


def write_picture(path: Path, image: Any) -> None:
    from PIL import Image

    with atomic_write(path) as temporary:
        picture = Image.fromarray(image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0))
        picture.save(temporary, format="PNG")


def free_path(folder: Path, stem: str, taken: Sequence[str] = ()) -> Path:
    """A name in ``folder`` that is neither in use nor ``taken``.

    Pictures from different folders may have the same stem.
    """
    path, number = folder / f"{stem}.png", 1
    while path.exists() or path.name in taken:
        path, number = folder / f"{stem}-{number}.png", number + 1
    return path
