"""Pictures that look alike in different splits are found, shown, and kept together if asked."""

import imagehash
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps

from pipeline.core.dataset import Dataset
from pipeline.data.download import download
from pipeline.data.near_duplicates import perceptual_hashes
from pipeline.data.preprocess import preprocess
from pipeline.data.settings import DataSettings

from .layouts import picture, saved


def test_the_hashes_are_those_of_imagehash_also_of_the_mirrored_picture():
    images = np.random.default_rng(0).integers(0, 256, (50, 1, 32, 32), dtype=np.uint8)
    for image, (own, mirrored) in zip(images, perceptual_hashes(images)):
        for found, given in ((own, image[0]), (mirrored, image[0, :, ::-1])):
            bits = np.unpackbits(np.array([found]).view(np.uint8)).reshape(8, 8).astype(bool)
            assert (
                imagehash.ImageHash(bits) - imagehash.phash(Image.fromarray(np.ascontiguousarray(given))) == 0
            )


@pytest.mark.parametrize("shape", [(3, 3, 16, 16), (2, 1, 96, 96), (0, 3, 32, 32)])
def test_pictures_of_any_size_have_two_hashes_each(shape):
    assert perceptual_hashes(np.zeros(shape, np.uint8)).shape == (shape[0], 2)


COPIES = {
    "resized": lambda image: saved(image.resize((150, 150), Image.Resampling.LANCZOS), "PNG"),
    "encoded again": lambda image: saved(image, "JPEG", quality=60),
    "mirrored": lambda image: saved(ImageOps.mirror(image), "WEBP", quality=80),
    "the same": lambda image: saved(image, "PNG"),
}


def made(environment, settings: DataSettings) -> Dataset:
    download(settings, environment, environment.root / "raw")
    preprocess(settings, environment, environment.root / "raw", environment.root / "processed")
    return Dataset.open(environment.root / "processed")


def own(**changes: object) -> DataSettings:
    return DataSettings(**{"source": "folder", "folder": "own", "image_size": 32, **changes})


def write(environment, name: str, data: bytes) -> None:
    path = environment.root / "own" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_in_the_test_split_is_listed_with_its_original_and_other_pictures_are_not(environment, kind):
    for number in range(40):
        split, label = ("test", "train")[number % 4 > 0], "ab"[number // 4 % 2]
        write(environment, f"{split}/{label}/{number}.png", saved(picture(number, 100), "PNG"))
    original = picture(1, 100)
    write(environment, "test/b/copy.png", COPIES[kind](original))
    data = made(environment, own())
    found = data.manifest["near_duplicates"]
    assert found["across"] == {"train-test": 1}
    assert found["examples"] == [["test", "test/b/copy.png", "train", "train/a/1.png"]]
    table = pd.read_csv(data.folder / "near-duplicates.csv")
    assert table["mirrored"].tolist() == [kind == "mirrored"]
    assert Image.open(data.folder / "near-duplicates.png").height > 50
    off = made(environment, own(near_duplicates="off"))
    assert (
        off.manifest["near_duplicates"]["across"] == {} and not (off.folder / "near-duplicates.csv").exists()
    )


def test_near_duplicates_are_kept_together_if_the_settings_say_so(environment):
    for number in range(60):
        write(environment, f"{'ab'[number % 2]}/{number}.png", saved(picture(number, 100), "PNG"))
        if number % 3 == 0:
            for kind, copy in COPIES.items():
                write(environment, f"{'ab'[number % 2]}/{number} {kind}.png", copy(picture(number, 100)))
    reported = made(environment, own())
    assert sum(reported.manifest["near_duplicates"]["across"].values()) > 10
    together = made(environment, own(near_duplicates="keep_together"))
    assert together.manifest["near_duplicates"] == {"across": {}, "examples": []}
    assert all(len(split) > 1 for split in (together.train, together.validation, together.test))
    count = lambda data: len(data.train) + len(data.validation) + len(data.test)
    assert count(together) == count(reported) == 60 + 20 * len(COPIES)
