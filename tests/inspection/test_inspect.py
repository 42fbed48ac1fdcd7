"""`darkroom inspect`: what is found in generated folders."""

import json
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.core import model_files
from pipeline.core.dataset import Dataset
from pipeline.core.loop import Loop
from pipeline.core.settings import TrainingSettings
from pipeline.data.download import download
from pipeline.data.preprocess import preprocess
from pipeline.data.settings import DataSettings
from pipeline.environment import Environment
from pipeline.inspection.inspect import FENCE, inspect
from pipeline.inspection.text import text
from tests.arrays import ArrayDataset
from tests.command import darkroom
from tests.data.conftest import fill


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """No project, as the current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def report_of(path, code=0):
    """The report of the command, which also has to print it as text."""
    assert darkroom("inspect", path)[0] == code
    found, output, _ = darkroom("inspect", path, "--json")
    assert found == code
    return json.loads(output)


def scene(seed, size=(60, 48)):
    """A picture of large coloured fields."""
    fields = np.random.default_rng(seed).integers(30, 220, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(fields).resize(size, Image.Resampling.BICUBIC)


def scenes(root, seed=0, suffix="png", **counts):
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            scene(seed := seed + 1).save(root / name / f"{number:03d}.{suffix}")
    return root


def test_a_good_folder_is_described_and_can_be_trained_on(place):
    root = scenes(place / "own", daisy=12, rose=9)
    Image.new("L", (60, 48), 90).save(root / "rose/grey.jpg")
    report = report_of("own")
    assert report["trainable"] and report["faults"] == [] and report["pictures"] == 22
    assert report["formats"] == {"PNG": 21, "JPEG": 1} and report["modes"] == {"RGB": 21, "L": 1}
    assert report["sizes"]["smallest"] == report["sizes"]["largest"] == [60, 48]
    assert report["sizes"]["not_square"] == 1
    assert [(row["class"], row["pictures"]) for row in report["classes"]] == [("daisy", 12), ("rose", 10)]
    assert report["imbalance"] == {"largest": "daisy", "smallest": "rose", "ratio": 1.2}


def test_the_splits_are_those_of_preprocessing(place):
    fill(place / "own", {"a": 30, "b": 12})
    settings = DataSettings(source="folder", folder="own", image_size=8)
    environment = Environment(root=place, storage=place / "storage")
    download(settings, environment, place / "raw")
    manifest = preprocess(settings, environment, place / "raw", place / "processed")
    report = report_of("own")
    assert report["splits"] == {split: entry["count"] for split, entry in manifest["splits"].items()}
    for split, entry in manifest["splits"].items():
        assert [row[split] for row in report["classes"]] == entry["classes"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_gives_the_report_of_its_folder(place, kind):
    root = scenes(place / "own", a=6, b=7)
    if kind == "zip":
        with zipfile.ZipFile("own.zip", "w") as archive:
            for path in root.rglob("*.png"):
                archive.write(path, path.relative_to(root))
    else:
        with tarfile.open("own.tar", "w") as archive:
            archive.add(root, ".")  # as tar -C own . does
    of_folder, of_archive = report_of("own"), report_of(f"own.{kind}")
    for key in ("path", "params"):
        assert of_folder.pop(key) != of_archive.pop(key)
    assert of_folder == of_archive


def test_every_fault_is_named_at_once_with_its_remedy_and_nothing_is_changed(place):
    root = scenes(place / "own", a=6, b=7)
    (root / "a/cut.png").write_bytes((root / "a/000.png").read_bytes()[:300])
    (root / "b/words.jpg").write_text("not a picture")
    (root / "b/notes.txt").write_text("words")
    before = sorted(path for path in place.rglob("*"))
    report = report_of("own", code=1)
    named = {name: fault for fault in report["faults"] for name in fault["examples"]}
    assert set(named) == {"a/cut.png", "b/words.jpg"} and len(report["faults"]) == 2
    assert all("max_bad_fraction" in fault["remedy"] for fault in report["faults"])
    assert any(each["examples"] == ["b/notes.txt"] for each in report["skipped"].values())
    assert sorted(path for path in place.rglob("*")) == before
    output = darkroom("inspect", "own")[1]
    assert output.splitlines()[-1] == "It cannot be trained on yet: 2 faults." and "a/cut.png" in output


def test_the_json_names_all_pictures_with_a_fault(place):
    root = fill(place / "own", {"a": 30, "b": 6})
    for path in (root / "a").iterdir():
        path.write_bytes(b"no picture")
    (fault,) = report_of("own", code=1)["faults"]
    assert fault["count"] == len(set(fault["examples"])) == 30


def test_too_few_pictures_are_a_fault_and_the_lines_for_params_leave_their_classes_out(place):
    scenes(place / "own", a=8, b=9, c=2)
    report = report_of("own", code=1)
    assert "'c' has 2" in report["faults"][0]["what"]
    data = yaml.safe_load(report["params"])["data"]
    assert data["min_images_per_class"] == 5


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [("nowhere", None, "no such folder or archive"), ("text.zip", "words", "is not a valid zip file")],
)
def test_what_cannot_be_opened_is_bad_input(place, name, content, said):
    if content:
        Path(name).write_text(content)
    code, output, error = darkroom("inspect", name, "--html", "page.html")
    assert (code, output) == (2, "") and said in error and not Path("page.html").exists()


def test_an_empty_folder_is_a_fault(place):
    (place / "own").mkdir()
    report = report_of("own", code=1)
    assert report["pictures"] == 0 and "no images" in report["faults"][0]["what"]


def test_near_duplicates_are_grouped_with_their_classes_and_splits(place):
    for split, seed in (("train", 0), ("test", 100)):
        scenes(place / "own" / split, seed, a=9, b=8)
    one = Image.open(place / "own/train/a/004.png")
    one.resize((120, 96)).save(place / "own/test/a/larger.png")
    one.save(place / "own/train/b/again.jpg", quality=90)
    other = Image.open(place / "own/train/b/002.png")
    other.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(place / "own/train/b/mirrored.png")
    found = report_of("own")["near_duplicates"]
    assert [group["pictures"] for group in found["groups"]] == [
        ["test/a/larger.png", "train/a/004.png", "train/b/again.jpg"],
        ["train/b/002.png", "train/b/mirrored.png"],
    ]
    assert found["groups"][0]["classes"] == ["a", "b"]
    assert set(found["groups"][0]["splits"]) >= {"test"} and found["count"] == 2
    assert found["across_classes"] == 1 and found["across_splits"] >= 1


def test_outliers_are_found_by_their_brightness_sharpness_and_size_and_others_are_not(place):
    root = scenes(place / "own", a=30, b=30)
    for path in root.rglob("*.png"):  # sharp edges
        Image.open(path).resize((6, 5)).resize((60, 48), Image.Resampling.NEAREST).save(path)
    Image.fromarray((np.asarray(scene(500)) * 0.05).astype(np.uint8)).save(root / "a/dark.png")
    Image.fromarray(255 - (np.asarray(scene(501)) * 0.05).astype(np.uint8)).save(root / "a/bright.png")
    scene(502, (900, 700)).save(root / "b/large.png")
    scene(503, (9, 7)).save(root / "b/small.png")
    blurred = scene(504).resize((3, 2)).resize((60, 48), Image.Resampling.BICUBIC)
    blurred.save(root / "b/blurred.png")
    outliers = report_of("own")["outliers"]
    for kind in ("dark", "bright", "large", "small"):
        assert [row["path"].split("/")[1] for row in outliers[kind]] == [f"{kind}.png"]
    assert "b/blurred.png" in [row["path"] for row in outliers["blurred"]]
    assert FENCE == 3 and outliers["large"][0]["size"] == [900, 700]


def test_the_lines_for_params_fit_the_folder(place):
    for number in range(40):
        grey = scene(number, (150, 70)).convert("L")
        path = place / "own" / ("many" if number < 32 else "few") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey.save(path)
    lines = yaml.safe_load(report_of("own")["params"])
    assert lines["data"] == {
        "source": "folder",
        "folder": str(place / "own"),
        "image_size": 64,
        "fit": "pad",
        "color": "grey",
    }
    assert lines["cnn"] == {"model": {"class_weights": "auto"}}
    assert lines["evaluate"] == {"allow_few_samples": True}
    settings = DataSettings(**lines["data"])
    environment = Environment(root=place, storage=place / "storage")
    download(settings, environment, place / "raw")
    preprocess(settings, environment, place / "raw", place / "processed")
    assert Dataset.open(place / "processed").spec["image"].shape == (1, 64, 64)


def make_project(place, **data):
    """A project in ``place``, whose classifier knows bright squares in two places."""
    (place / ".dvc").mkdir()
    (place / "dvc.yaml").write_text("stages: {}")
    (place / "params.yaml").write_text(
        json.dumps({"data": data or {"source": "digits"}, "cnn": {"training": {"batch_size": 64}}})
    )
    task = model_files.build("cnn", {"channels": [8], "dense": [8]}, ArrayDataset().spec, 0)
    settings = TrainingSettings(num_steps=150, batch_size=32)
    task = Loop(task, ArrayDataset(), settings, place / "training").run()
    model_files.write(task, place / "models/cnn", {"class_names": ["left", "right"]})


def squares(root, count=40):
    """Pictures that this classifier knows, in the folders left and right; two are in the wrong one."""
    rows = ArrayDataset(train=2 * count, seed=5).train.rows(np.arange(2 * count))
    for number, (image, label) in enumerate(zip(rows["image"][:, 0], rows["label"], strict=True)):
        wrong = number in (10, 31)
        path = root / ("left", "right")[int(label) ^ wrong] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def test_labels_that_a_trained_classifier_doubts_are_listed_with_what_it_sees(place):
    make_project(place)
    squares(place / "own")
    report = report_of("own")
    found = report["suspected_labels"]
    assert found["judged"] == 80
    assert {row["path"]: row["predicted"] for row in found["pictures"]} == {
        "right/10.png": "left",
        "left/31.png": "right",
    }
    assert all(row["probability"] < 0.2 for row in found["pictures"])
    lines = yaml.safe_load(report["params"])
    assert lines["data"]["folder"] == "own"  # relative to the project
    assert lines["cnn"] == {"training": {"batch_size": 2 ** int(np.log2(report["splits"]["train"]))}}


def test_pictures_on_which_the_classifier_was_trained_are_not_judged(place):
    make_project(place, source="folder", folder="own", image_size=8, color="grey")
    squares(place / "own")
    report = report_of("own")
    assert report["suspected_labels"]["judged"] == report["splits"]["validation"] + report["splits"]["test"]


def test_a_classifier_of_other_classes_judges_nothing(place):
    make_project(place)
    scenes(place / "own", a=6, b=6)
    found = report_of("own")["suspected_labels"]
    assert found["judged"] == 0 and "other classes" in found["note"] and found["pictures"] == []


def test_a_damaged_classifier_judges_nothing_and_the_rest_is_reported(place):
    make_project(place)
    squares(place / "own")
    (place / "models/cnn/model.safetensors").write_bytes(b"damaged")
    found = report_of("own")["suspected_labels"]
    assert found["judged"] == 0 and "SHA-256" in found["note"]


def test_a_table_of_labels_and_arrays_are_described_too(place):
    scenes(place / "table", images=12)
    names = [f"images/{number:03d}.png,{'ab'[number % 2]}\n" for number in range(12)]
    (place / "table/labels.csv").write_text("file,label\n" + "".join(names))
    report = report_of("table")
    assert [(row["class"], row["pictures"]) for row in report["classes"]] == [("a", 6), ("b", 6)]
    assert report["skipped"] == {} and "labels.csv" in report["warnings"][0]
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    np.savez(place / "arrays.npz", images=images, labels=np.arange(20) % 2)
    report = report_of("arrays.npz")
    assert report["pictures"] == 20 and yaml.safe_load(report["params"])["data"]["image_size"] == 28


def test_twelve_bits_in_sixteen_are_shown_as_the_training_sees_them(place):
    for number in range(12):
        path = place / "own" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        wide = np.asarray(scene(number).convert("L")).astype(np.uint16) * 16
        Image.fromarray(wide).save(path)
    found = inspect(place / "own", None, lambda *numbers: None)
    assert found.bits == 12 and {picture.mode for picture in found.pictures} == {"I;16"}
    same = np.asarray(scene(0).convert("L"))
    picture = next(each for each in found.pictures if each.entry.path == "a/0.png")
    assert picture.brightness == pytest.approx(same.mean() / 255, abs=0.01)


def test_pictures_of_one_class_can_be_trained_on(place):
    scenes(place, own=9)
    report = report_of("own")
    assert report["trainable"] and "one class" in report["warnings"][0]
    assert "9 pictures in 1 class\n" in darkroom("inspect", "own")[1]


def test_the_page_stands_alone_and_shows_all_parts(place):
    make_project(place)
    squares(place / "own")
    shutil.copy(place / "own/left/00.png", place / "own/left/twin.png")
    (place / "own/left/cut.png").write_bytes((place / "own/left/00.png").read_bytes()[:60])
    (place / "own/left/notes <b>.txt").write_text("words")
    Image.new("L", (8, 8)).save(place / "own/left/black.png")
    assert darkroom("inspect", "own", "--html", "new/page.html")[0] == 1
    page = Path("new/page.html").read_text()
    for part in (
        "Faults",
        "What would be read",
        "Skipped",
        "Near-duplicates",
        "Outliers",
        "Suspected labels",
    ):
        assert f"<h2>{part}</h2>" in page
    for name in ("left/cut.png", "left/twin.png", "left/black.png", "right/10.png", "notes &lt;b&gt;.txt"):
        assert name in page
    assert page.count("data:image/png;base64,") >= 6
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")


def test_a_name_that_is_not_text_is_named_in_every_form(place):
    scenes(place / "own", a=6, b=6)
    try:
        (place / "own/a/000.png").rename(os.fsdecode(b"own/a/caf\xe9.png"))
    except OSError:
        pytest.skip("this file system takes text only")
    code, output, _ = darkroom("inspect", "own", "--html", "page.html")
    assert code == 1 and "a/caf?.png" in output and "a/caf?.png" in Path("page.html").read_text()
    json.dumps(report_of("own", code=1)).encode()


def test_progress_is_shown_as_pictures_are_measured(place):
    scenes(place / "own", a=70, b=30)
    seen = []
    found = inspect(place / "own", None, lambda *numbers: seen.append(numbers))
    assert seen == [(64, 100), (100, 100)] and "100 pictures in 2 classes" in text(found.report)
