"""Models of clips and scenes that are composed of the pictures, in a retraining."""

import shutil
from types import SimpleNamespace

import pytest

from pipeline.core import model_files
from pipeline.core.dataset import Dataset
from pipeline.data.clips.compose import compose
from pipeline.data.clips.settings import ClipSettings
from pipeline.data.scenes import write_scenes
from pipeline.data.scenes.settings import SceneSettings
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.files import read_json, write_json
from pipeline.retraining.champion_challenger import Champion, compare
from pipeline.retraining.gates import GateSettings

SMALL = {"num_train": 10, "num_validation": 3, "num_test": 12}
CONFIGS = {"cnn": {"channels": [4], "dense": [8]}, "unet": {"width": 8, "depth": 1}, "rcnn": {"width": 4}}
DATA = {"cnn": "images", "unet": "scenes", "rcnn": "clips"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory, processed_digits):
    """A project's data and models, not trained: a classifier, a U-Net and a ConvLSTM."""
    tree = tmp_path_factory.mktemp("composed")
    processed = tree / "data/processed"
    shutil.copytree(processed_digits, processed / "images")
    write_scenes(SceneSettings(**SMALL), processed / "images", processed / "scenes")
    clips = ClipSettings(**SMALL, num_frames=4, num_objects=1)
    compose(clips, images=processed / "images", target=processed / "clips")
    for name, config in CONFIGS.items():
        write_model(tree, name, config, seed=0)
        write_json(tree / "history" / name / "times.json", {"total": 1.0})
    return tree


def write_model(tree, name, config, seed, **card):
    data = Dataset.open(tree / "data/processed" / DATA[name])
    task = model_files.build(name, config, data.spec, seed)
    model_files.write(task, tree / "models" / name, {"class_names": list(data.class_names)} | card)


def test_they_are_measured_against_their_champions_on_their_own_test_split(tree, tmp_path):
    (tmp_path / "data").symlink_to(tree / "data")
    candidates = {name: SimpleNamespace(version="2", tags={}) for name in CONFIGS}
    serving = {}
    for name, config in CONFIGS.items():
        write_model(tmp_path, name, config, seed=1)
        serving[name] = Champion(name, "1", tmp_path / "models" / name)
    settings = EvaluationSettings(allow_few_samples=True, num_bootstrap=5)
    verdicts = compare(settings, GateSettings(), tree, "cpu", 5, candidates, serving)
    gates = {verdict.model: {gate["name"]: gate for gate in verdict.gates} for verdict in verdicts}
    assert gates["unet"]["enough test images"]["finding"].startswith("12,")
    assert gates["rcnn"]["comparable"]["passed"] and "frame_mse" in gates["rcnn"]
    numbers = {verdict.model: (verdict.numbers, verdict.before_numbers) for verdict in verdicts}
    for name, measure in {"cnn": "accuracy", "unet": "mean_iou", "rcnn": "frame_mse"}.items():
        ours, theirs = numbers[name]
        assert ours[measure]["value"] != theirs[measure]["value"], name


def test_a_champion_of_scenes_with_other_classes_cannot_be_compared(tree, tmp_path):
    (tmp_path / "data").symlink_to(tree / "data")
    write_model(tmp_path, "unet", CONFIGS["unet"], seed=1, class_names=["background", "flower"])
    serving = {"unet": Champion("unet", "1", tmp_path / "models/unet")}
    candidates = {"unet": SimpleNamespace(version="2", tags={})}
    settings = EvaluationSettings(allow_few_samples=True)
    (verdict,) = compare(settings, GateSettings(), tree, "cpu", 5, candidates, serving)
    assert not verdict.promoted and "knows 2 classes" in verdict.reason


def test_new_pictures_are_no_reason_to_promote_a_model_of_a_users_own_clips(tree, tmp_path):
    shutil.copytree(tree, tmp_path / "own")
    path = tmp_path / "own/data/processed/clips/manifest.json"
    manifest = read_json(path)
    del manifest["pictures"]
    write_json(path, manifest)
    candidates = {"rcnn": SimpleNamespace(version="2", tags={})}
    serving = {"rcnn": Champion("rcnn", "1", tree / "models/rcnn")}
    settings = EvaluationSettings(allow_few_samples=True)
    gates = GateSettings(minimum_test_images=1)
    (composed,) = compare(settings, gates, tree, "cpu", 5, candidates, serving)
    (own,) = compare(settings, gates, tmp_path / "own", "cpu", 5, candidates, serving)
    assert composed.promoted and "trained on new pictures" in composed.reason
    assert not own.promoted and "no new pictures" in own.reason
