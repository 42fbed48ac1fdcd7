"""A user's images and masks: each layout is read, or refused with all faults before anything is written."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.core.dataset import SPLITS, Dataset
from pipeline.data.scenes import write_scenes
from pipeline.data.scenes.settings import SceneSettings
from pipeline.errors import BadInput
from pipeline.files import sha256
from pipeline.layers.label_maps import IGNORED
from pipeline.params import validate


def png(values, mode=None, palette=None, kind="PNG"):
    """The bytes of a picture of this array."""
    image = (
        Image.fromarray(np.asarray(values, np.uint8), mode) if mode else Image.fromarray(np.asarray(values))
    )
    if palette:
        image.putpalette(palette)
    file = io.BytesIO()
    image.save(file, format=kind)
    return file.getvalue()


def photo(seed, height=6, width=6):
    return png(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def labels(seed, height=6, width=6, classes=3):
    mask = np.zeros((height, width), np.uint8)
    mask[:, seed % width] = 1 + seed % (classes - 1)
    return mask


def files(count=6, mask=labels, image_path="images/{}.png", mask_path="masks/{}.png", encode=png):
    """Pictures and their masks, by path."""
    found = {}
    for seed in range(count):
        found[image_path.format(seed)] = photo(seed)
        found[mask_path.format(seed)] = encode(mask(seed))
    return found


def colored(mask):
    return png(np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0)], np.uint8)[mask])


def with_splits(counts, **more):
    return {
        f"{split}/{name}": data
        for split, count in counts.items()
        for name, data in files(count, **more).items()
    }


TABLE = b"name,r,g,b\nbackground,0,0,0\nroad,255,0,0\ncar,0,255,0\n"
CAMVID = b"0 0 0\tbackground\n255 0 0\troad\n0 255 0\tcar\n9 9 9\tVoid\n"
SPLIT = {"train": 4, "val": 2, "test": 3}
ACCEPTED = {  # files, settings, names of the classes, examples of each split
    "class indices": (files(), {}, "background 1 2", None),
    "names of the classes": (files(), {"classes": ("sky", "road", "car", "bus")}, "sky road car bus", None),
    "a palette": (
        files(encode=lambda mask: png(mask, "P", [0, 0, 0, 9, 9, 9, 50, 50, 50])),
        {},
        "background 1 2",
        None,
    ),
    "colours, as a table with commas": (
        {**files(encode=colored), "classes.csv": TABLE},
        {"colors": "classes.csv"},
        "background road car",
        None,
    ),
    "a palette, by its colours": (
        {
            **files(encode=lambda mask: png(2 - mask, "P", [0, 255, 0, 255, 0, 0, 0, 0, 0])),
            "classes.csv": TABLE,
        },
        {"colors": "classes.csv"},
        "background road car",
        None,
    ),
    "colours, with some that are ignored": (
        {**files(encode=colored), "label_colors.txt": CAMVID},
        {"colors": "label_colors.txt"},
        "background road car",
        None,
    ),
    "colours, as a table with a byte order mark": (
        {**files(encode=colored), "label_colors.txt": b"\xef\xbb\xbf" + CAMVID},
        {"colors": "label_colors.txt"},
        "background road car",
        None,
    ),
    "splits above": (with_splits(SPLIT), {}, "background 1 2", (4, 2, 3)),
    "splits below": (
        {
            name: data
            for split, count in SPLIT.items()
            for name, data in files(
                count, image_path=f"images/{split}/{{}}.png", mask_path=f"masks/{split}/{{}}.png"
            ).items()
        },
        {},
        "background 1 2",
        (4, 2, 3),
    ),
    "another suffix": (
        files(mask_path="masks/{}.bmp", encode=lambda mask: png(mask, kind="BMP")),
        {},
        "background 1 2",
        None,
    ),
    "16 bits": (files(encode=lambda mask: png(mask.astype(np.uint16))), {}, "background 1 2", None),
    "ignored pixels": (
        files(mask=lambda seed: np.where(labels(seed) == 2, IGNORED, labels(seed))),
        {},
        "background 1",
        None,
    ),
}


def write(folder: Path, contents):
    for name, data in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return str(folder)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings_of(folder, **more):
    return validate({"source": "folder", "size": 6, "folder": folder, **more}, SceneSettings, where="scenes")


@pytest.mark.parametrize("name", ACCEPTED)
def test_each_layout_of_masks_is_read(name, place):
    contents, settings, classes, counts = ACCEPTED[name]
    write_scenes(settings_of(write(place / "own", contents), **settings), target=place / "scenes")
    data = Dataset.open(place / "scenes")
    assert " ".join(data.class_names) == classes and data.spec["mask"].num_values == len(data.class_names)
    found = tuple(len(getattr(data, split)) for split in SPLITS)
    assert found == (counts or found) and sum(found) == (9 if counts else 6)
    rows = [getattr(data, split).rows(np.arange(len(getattr(data, split)))) for split in SPLITS]
    pairs = {
        row["image"][index].tobytes(): row["mask"][index] for row in rows for index in range(len(row["mask"]))
    }
    for seed in range(6 if not counts else 2):
        expected = (
            np.where(labels(seed) == 2, IGNORED, labels(seed)) if name == "ignored pixels" else labels(seed)
        )
        image = np.array(Image.open(io.BytesIO(photo(seed)))).transpose(2, 0, 1)
        assert (pairs[image.tobytes()] == expected).all()


def test_an_archive_is_read_as_the_folder_is(place):
    write(place / "own", files())
    with zipfile.ZipFile(place / "own.zip", "w") as archive:
        for path in sorted((place / "own").rglob("*.png")):
            archive.write(path, path.relative_to(place / "own"))
    for name in ("own", "own.zip"):
        write_scenes(settings_of(name), target=place / f"{name}-scenes")
    shards = [sorted(map(sha256, (place / f"{name}-scenes").rglob("*.npy"))) for name in ("own", "own.zip")]
    assert shards[0] == shards[1]


def test_masks_are_resized_without_new_classes(place):
    contents = files(mask=lambda seed: 2 * labels(seed, classes=2))
    write_scenes(settings_of(write(place / "own", contents), size=17), target=place / "scenes")
    masks = Dataset.open(place / "scenes").train.rows(np.arange(3))["mask"]
    assert masks.shape == (3, 17, 17) and set(np.unique(masks)) == {0, 2}


def test_the_bars_of_padded_masks_are_ignored(place):
    contents = {name: photo(0, 4, 6) if "images" in name else png(labels(0, 4, 6)) for name in files()}
    write_scenes(settings_of(write(place / "own", contents), fit="pad"), target=place / "scenes")
    data = Dataset.open(place / "scenes").train.rows(np.arange(2))
    assert (data["mask"][:, [0, 5]] == IGNORED).all() and (data["mask"][:, 1:5] == labels(0, 4, 6)).all()
    assert not data["image"][:, :, [0, 5]].any()


def test_a_picture_keeps_its_split_when_others_are_added(place):
    counts = {}
    for count in (12, 30):
        write_scenes(settings_of(write(place / f"own{count}", files(count))), target=place / f"s{count}")
        data = Dataset.open(place / f"s{count}")
        counts[count] = {
            image.tobytes(): split
            for split in SPLITS
            for image in getattr(data, split).rows(np.arange(len(getattr(data, split))))["image"]
        }
    assert sum(counts[30][image] == split for image, split in counts[12].items()) >= 11


def without(contents, *names):
    return {name: data for name, data in contents.items() if name not in names}


REFUSED = {  # files, settings, what the message says
    "mask missing": (without(files(), "masks/3.png"), {}, "images without a mask: 'images/3.png'"),
    "image missing": (without(files(), "images/3.png"), {}, "masks without an image: 'masks/3.png'"),
    "no masks": (
        without(files(), *(f"masks/{n}.png" for n in range(6))),
        {},
        "no pictures in the folders: 'masks/'",
    ),
    "nothing": ({"readme.txt": b"x"}, {}, "no pictures in the folders: 'images/', 'masks/'"),
    "another size": (
        {**files(), "masks/2.png": png(labels(2, 6, 7))},
        {},
        "masks of another size than their picture: 'masks/2.png (7 x 6, the picture 6 x 6)'",
    ),
    "unknown class": (files(), {"classes": ("sky", "road")}, "classes above 1, the last of 2"),
    "index of 16 bits": (
        {**files(), "masks/2.png": png(np.full((6, 6), 700, np.uint16))},
        {},
        "has the value 700: class indices are below 255: 'masks/2.png'",
    ),
    "colour not in the table": (
        {**files(encode=colored), "classes.csv": TABLE.replace(b"car,0,255,0", b"car,0,254,0")},
        {"colors": "classes.csv"},
        "has colours that are not in the table: 'masks/1.png (0 255 0)'",
    ),
    "colours without a table": (files(encode=colored), {}, "has RGB colours: set scenes.colors"),
    "table missing": (files(encode=colored), {"colors": "none.csv"}, "no table of colours that can be read"),
    "table of nonsense": (
        {**files(encode=colored), "t": b"a,0,0,0\nb,0,0,900\n"},
        {"colors": "t"},
        "line 2 is not a name and a new colour",
    ),
    "the same colour twice": ({**files(), "t": b"a 0 0 0\nb 0 0 0"}, {"colors": "t"}, "line 2 is not"),
    "broken mask": (
        {**files(), "masks/1.png": b"no"},
        {},
        "is not an image of a supported format: 'masks/1.png'",
    ),
    "broken picture": ({**files(), "images/1.png": photo(1)[:-30]}, {}, "cannot be decoded: 'images/1.png"),
    "lossy masks": (
        files(mask_path="masks/{}.jpg", encode=lambda mask: png(mask, kind="JPEG")),
        {},
        "masks in a format with loss",
    ),
    "two pictures of a name": ({**files(), "images/1.bmp": photo(1)}, {}, "several files with the same name"),
    "only 255": (
        files(mask=lambda seed: 255 * labels(seed, classes=2)),
        {},
        "only masks with the values 0 and 255",
    ),
    "polygons": (
        {"images/1.jpg": photo(1), "annotations/instances.json": b"{}"},
        {},
        "polygons (COCO's annotations), which no installed library reads",
    ),
    "no training split": (with_splits({"val": 2, "test": 3}), {}, "no training split"),
    "outside of the splits": ({**with_splits(SPLIT), **files(1)}, {}, "outside the folders of its splits"),
    "few": (files(4), {}, "fewer than the 5 pictures"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_each_wrong_layout_is_refused_by_name_and_nothing_is_written(name, place):
    contents, settings, message = REFUSED[name]
    folder = write(place / "own", contents)
    with pytest.raises(BadInput) as caught:
        write_scenes(settings_of(folder, **settings), target=place / "processed/scenes")
    assert message in str(caught.value) and "->" in str(caught.value), caught.value
    assert not os.path.exists(place / "processed")


def test_all_faults_are_named_at_once(place):
    contents = {
        **without(files(9), "masks/0.png", "images/1.png"),
        "masks/2.png": b"no",
        "images/3.png": photo(3, 5),
    }
    with pytest.raises(BadInput) as caught:
        write_scenes(settings_of(write(place / "own", contents)), target=place / "scenes")
    for part in ("images/0.png", "masks/1.png", "masks/2.png", "masks/3.png (6 x 6, the picture 6 x 5)"):
        assert part in str(caught.value)


def test_both_files_of_a_pair_and_all_colours_and_lines_are_named(place):
    both = {"images/1.png": b"no", "masks/1.png": b"no"}
    colors = {"masks/2.png": png(np.arange(108, dtype=np.uint8).reshape(6, 6, 3) // 54)}
    cases = {
        "table": (TABLE, ("'images/1.png', 'masks/1.png'", "'masks/2.png (1 1 1)'")),
        "wrong": (b"a 1\nb 0 0 0\nc 2\n", ("line 1, 3 is not", "'wrong'", "'images/1.png'")),
    }
    for name, (table, parts) in cases.items():
        own = write(place / name / "own", {**files(encode=colored), **both, **colors, name: table})
        with pytest.raises(BadInput) as caught:
            write_scenes(settings_of(own, colors=name), target=place / "scenes")
        assert all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.parametrize("count", [1, 255])
def test_the_number_of_classes_is_bounded(count):
    with pytest.raises(BadInput, match="classes are 2 to 254 names"):
        settings_of("own", classes=tuple(map(str, range(count))))
    settings_of("own", classes=tuple(map(str, range(254))))


def test_settings_that_do_not_fit_are_refused_at_once():
    with pytest.raises(BadInput, match=r"num_objects are.*needs folder.*needs size"):
        validate({"source": "folder", "num_objects": [3, 2]}, SceneSettings, where="scenes")
    with pytest.raises(BadInput, match="folder is for source: folder"):
        validate({"folder": "x"}, SceneSettings, where="scenes")


def test_an_experiment_whose_masks_nothing_tracks_is_refused_with_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "data/own/street").mkdir(parents=True)
    copy = tmp_path / ".dvc/tmp/exps/one"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    settings = SceneSettings(source="folder", folder="data/own/street", size=16)
    with pytest.raises(BadInput, match="is tracked neither by git nor by DVC") as raised:
        write_scenes(settings, target=copy / "scenes", root=tmp_path)
    assert "dvc add data/own/street" in raised.value.remedy
