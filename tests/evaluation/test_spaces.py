"""The spaces in which images are compared: networks in files, pixels; and what is measured of pixels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from pipeline.core import model_files
from pipeline.errors import BadInput
from pipeline.estimate import Estimate
from pipeline.evaluation import pixels, side_by_side, threads
from pipeline.evaluation.distances import spread
from pipeline.evaluation.evaluate import protocol_of
from pipeline.evaluation.features import FeatureSpace
from pipeline.evaluation.pixels import PixelRecord
from pipeline.files import digest_of, sha256
from pipeline.retraining.gates import Facts, GateSettings, judge
from pipeline.tracking.run_comparison import Compared
from stages.evaluate import fingerprint
from tests.evaluation.conftest import SETTINGS, SIZE, Conditional, run

CPU = torch.device("cpu")
IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
SMALL = {"channels": [4], "dense": [8]}


def using(network):
    return SETTINGS.model_copy(update={"feature_network": str(network)})


def write_model(folder, name="cnn", size=8, config=SMALL):
    spec = model_files.DataSpec.labelled_images(1, size, 3)
    model_files.write(model_files.build(name, config, spec, 3), folder, {"class_names": ["a", "b", "c"]})
    return folder


def write_onnx(path, channels=3, size=4, batch="N"):
    """A network whose features are the means of the channels, times 2."""
    import onnx
    from onnx import TensorProto, helper

    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, channels, size, size])
    output = helper.make_tensor_value_info("features", TensorProto.FLOAT, [batch, channels, 1, 1])
    two = helper.make_tensor("two", TensorProto.FLOAT, [1], [2.0])
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["means"]),
        helper.make_node("Mul", ["means", "two"], ["features"]),
    ]
    graph = helper.make_graph(nodes, "means", [images], [output], [two])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


def test_a_model_folder_or_its_weights_are_a_feature_network_named_by_their_digest(tmp_path):
    folder = write_model(tmp_path / "judge")
    space = FeatureSpace.of_network(str(folder), (1, 8, 8), CPU)
    task = model_files.load(folder)
    rounded = IMAGES.mul(255).round() / 255
    assert np.allclose(space.vectors([IMAGES]), task.features(rounded).double().numpy())
    assert (space.name, space.digest) == ("judge", model_files.digest(folder))
    again = FeatureSpace.of_network(str(folder / model_files.WEIGHTS), (1, 8, 8), CPU)
    assert (again.name, again.digest) == (space.name, space.digest)


def test_an_onnx_file_is_a_feature_network_named_by_its_sha256(tmp_path):
    path = write_onnx(tmp_path / "means.onnx")
    space = FeatureSpace.of_network(str(path), (1, 8, 8), CPU)
    vectors = space.vectors([IMAGES[:2], IMAGES[2:]])
    assert (space.name, space.digest) == ("means.onnx", sha256(path)) and vectors.shape == (5, 3)
    expected = 2 * IMAGES.mean(dim=(1, 2, 3)).numpy()  # resized, and repeated as RGB
    assert vectors == pytest.approx(np.repeat(expected[:, None], 3, 1), abs=0.05)


def test_weights_in_another_file_are_part_of_the_identity_and_of_the_evaluations_fingerprint(tmp_path):
    import onnx

    found = []
    for value in (2.0, 3.0):
        model = onnx.load(write_onnx(tmp_path / "whole.onnx"))
        model.graph.initializer[0].CopyFrom(
            onnx.numpy_helper.from_array(np.full(1, value, np.float32), "two")
        )
        path = tmp_path / "net.onnx"
        (tmp_path / "net.onnx.data").unlink(missing_ok=True)
        onnx.save(model, path, save_as_external_data=True, location="net.onnx.data", size_threshold=0)
        space = FeatureSpace.of_network(str(path), (1, 8, 8), CPU)
        found.append((sha256(path), space.digest, fingerprint(using(path), {"images": "d"}, {"gan": "g"})))
    same, digests, fingerprints = map(set, zip(*found))
    assert (len(same), len(digests), len(fingerprints)) == (1, 2, 2)
    (tmp_path / "net.onnx.data").unlink()
    with pytest.raises(BadInput, match="cannot be used"):
        FeatureSpace.of_network(str(path), (1, 8, 8), CPU)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none.onnx", "no such file or folder"),
        (lambda folder: write_model(folder / "gan", "gan", config={"width": 8}), "has no features"),
        (lambda folder: write_model(folder / "large", size=12), "reads images of 1 x 12 x 12"),
        (lambda folder: write_onnx(folder / "fixed.onnx", batch=4), r"its input is \[4, 3, 4, 4\]"),
        (lambda folder: write_onnx(folder / "five.onnx", channels=5), "the data has images of"),
    ],
)
def test_a_network_that_cannot_be_used_is_refused_with_the_setting(tmp_path, make, message):
    with pytest.raises(BadInput, match=message) as raised:
        FeatureSpace.of_network(str(make(tmp_path)), (1, 8, 8), CPU)
    assert raised.value.where.startswith("params.yaml: evaluate.feature_network")


def test_a_broken_onnx_file_is_refused(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    with pytest.raises(BadInput, match="cannot be used"):
        FeatureSpace.of_network(str(tmp_path / "broken.onnx"), (1, 8, 8), CPU)


def test_results_of_two_spaces_are_not_compared(dataset, tasks, tmp_path):
    path = write_onnx(tmp_path / "means.onnx", channels=dataset.spec.channels, size=SIZE)
    measured = {}
    for network in ("", "pixels", path):
        results = run(dataset, tasks, tmp_path, using(network))
        measured[digest_of(protocol_of(results, "gan"))] = Estimate.read(results["gan"])
        assert results["gan"]["label_agreement"]["value"] == 1  # by the classifier, in any space
    assert len(measured) == 3
    pairs = list(measured.items())
    first, second = (dict([pair]) for pair in pairs[:2])
    gates = {gate.name: gate for gate in judge(first, second, GateSettings(), Facts())}
    assert not gates["comparable"].passed and "another feature space" in gates["comparable"].finding


def test_pixels_are_a_space_that_needs_no_classifier(dataset, tmp_path):
    results = run(dataset, {"gan": Conditional(dataset.spec.channels)}, tmp_path, using("pixels"))
    used = results["protocol"]["gan"]["features"]
    assert (used["network"], used["dimensions"]) == ("pixels", dataset.spec.channels * SIZE**2)
    assert "fid" in results["gan"] and "label_agreement" not in results["gan"]


def test_a_missing_network_is_refused_before_anything_is_measured(dataset, tasks, tmp_path, monkeypatch):
    from pipeline.evaluation import context

    monkeypatch.setattr(context.Context, "batches", lambda model, purpose: pytest.fail(purpose))
    with pytest.raises(BadInput, match="no such file"):
        run(dataset, tasks, tmp_path, using("models/judge"))


# pixels


def test_nearest_distances_in_pixels_agree_with_brute_force():
    images, reference = (torch.randint(0, 256, (count, 48), dtype=torch.uint8) for count in (20, 70))
    images[3] = reference[5]
    expected = cdist(images.double() / 255, reference.double() / 255)
    assert pixels.nearest(images, reference) == pytest.approx(np.sort(expected)[:, :2], abs=1e-2)


def test_only_a_block_of_the_reference_is_made_floats_at_a_time(monkeypatch):
    sizes, to_float = [], torch.Tensor.float
    monkeypatch.setattr(threads, "BLOCK_VALUES", 1000)
    monkeypatch.setattr(torch.Tensor, "float", lambda self: sizes.append(self.numel()) or to_float(self))
    images, reference = (torch.randint(0, 256, (count, 48), dtype=torch.uint8) for count in (20, 170))
    found = pixels.nearest(images, reference)
    assert max(sizes) <= 1000 and sum(sizes) == 190 * 48
    expected = np.sort(cdist(images.double(), reference.double()) / 255)[:, :2]
    assert found == pytest.approx(expected, abs=1e-2)


def test_sharpness_is_the_mean_squared_laplacian():
    flat, slope = torch.ones(1, 1, 6, 6), torch.arange(6.0).expand(1, 1, 6, 6) / 6
    checks = (torch.arange(6)[:, None] + torch.arange(6)) % 2 * torch.ones(1, 3, 6, 6)
    assert pixels.sharpness(torch.cat([flat, slope])).tolist() == pytest.approx([0, 0], abs=1e-9)
    assert pixels.sharpness(checks).tolist() == [16]
    assert pixels.sharpness(torch.ones(2, 1, 2, 2)).shape == (2,)


@pytest.mark.parametrize(("count", "most", "kept"), [(10, 10, 10), (10, 4, 4), (10, 9, 5), (3, 10, 3)])
def test_a_record_keeps_evenly_spaced_pixels_whatever_the_batches(count, most, kept):
    images = torch.arange(count)[:, None, None, None].expand(-1, 1, 3, 3) / 255
    records = [PixelRecord(count, most) for _ in range(2)]
    assert len(torch.cat(list(records[0].watch(images.split(1))))) == count
    list(records[1].watch(images.split(4)))
    assert len(records[0].pixels) == kept and len(records[0].sharpness) == count
    assert torch.equal(records[0].pixels, records[1].pixels)


def test_spread_is_the_unbiased_variance_within_classes():
    vectors = np.random.default_rng(0).normal(size=(60, 4))
    labels = np.repeat([0, 7], 30)
    vectors[30:] += 100
    expected = np.mean([vectors[labels == label].var(axis=0, ddof=1).sum() for label in (0, 7)])
    assert spread(vectors, labels).mean() == pytest.approx(expected)
    assert spread(vectors, None).mean() == pytest.approx(vectors.var(axis=0, ddof=1).sum())


def test_runs_of_different_protocols_are_shown_side_by_side_without_a_best_value():
    runs = [
        Compared(title, "0" * 32, {}, {protocol: {"fid": Estimate(value)}}, b"", {})
        for title, protocol, value in (("a", "p", 1.0), ("b", "q", 2.0))
    ]
    (row,) = side_by_side.rows(runs)
    assert row.best == set() and "cannot be compared" in side_by_side.note(runs)
    same = [replace(run, results={"p": next(iter(run.results.values()))}) for run in runs]
    (row,) = side_by_side.rows(same)
    assert row.best == {0} and "the same protocol" in side_by_side.note(same)
