"""Pictures for commands, and what the commands print about them."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline import cli
from pipeline.core import model_files
from pipeline.core.task import Batch, DataSpec

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "sieben", "acht", "neun"]
GREY = DataSpec.labelled_images(1, 8, 10)


def pixels(seed=0, size=8):
    return np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)


def picture(path, seed=0):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed)).save(path)
    return path


def broken(path):
    """The first half of a picture."""
    whole = picture(path).read_bytes()
    Path(path).write_bytes(whole[: len(whole) // 2])
    return path


def answers(output):
    """{path: (class, probability)} of the lines of classify."""
    rows = [line.split("\t") for line in output.splitlines()]
    return {path: (answer.split()[0], float(answer.split()[1])) for path, answer in rows}


def expected(seed):
    """The class and probability that the classifier itself gives to ``picture(seed=seed)``."""
    task = model_files.load(Path("models/cnn"))
    shares = task.classify(Batch.load({"image": pixels(seed)[None, None]}, GREY).images).softmax(1)[0]
    return NAMES[int(shares.argmax())], pytest.approx(float(shares.max()), abs=1e-4)


def hidden(folder):
    return [path for path in Path(folder).rglob(".*") if path.name != ".dvc"]


def mixed(*arguments):
    """(exit code, standard output, standard error, exception) of a command that continues after errors."""
    result = CliRunner().invoke(cli.commands, [str(argument) for argument in arguments])
    return (
        getattr(result.exception, "exit_code", result.exit_code),
        result.stdout,
        result.stderr,
        str(result.exception or ""),
    )


def everything(folder):
    """All files and folders below ``folder``, without those behind the link to the models."""
    return sorted(
        str(path.relative_to(folder)) for path in Path(folder).rglob("*") if "models/" not in str(path)
    )
