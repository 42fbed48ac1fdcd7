"""benchmarks/gpu.py in miniature on the CPU."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from pipeline.core import model_files
from pipeline.divergence import Diverged
from pipeline.evaluation import frechet
from tests import core_only

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks/gpu.py"


@pytest.fixture
def gpu(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import gpu

    monkeypatch.setattr(gpu, "make_deterministic", lambda threads: None)
    monkeypatch.setattr(gpu, "keep_freed_memory", lambda: None)
    return gpu


def run(folder, *arguments):
    """The results of the parts, from a process in which only the core's packages can be imported."""
    command = [sys.executable, str(SCRIPT), "--miniature", "--json", str(folder / "gpu.json"), *arguments]
    done = subprocess.run(
        command, env=core_only.environment(folder), capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "gpu.json").read_text())["parts"], done.stdout


def test_parts_run_with_the_packages_of_the_core_alone(tmp_path, gpu):
    parts, _ = run(tmp_path, "--only", "machine", "repeat", "ray")
    statuses = {name: found["status"] for name, found in parts.items()}
    assert statuses == {"machine": "done", "repeat": "done", "ray": "left out"}
    assert all(parts["repeat"][name]["equal"] for name in gpu.gpu_parts.MODELS)


@pytest.mark.nightly
def test_every_part_runs_with_the_packages_of_the_core_alone(tmp_path, gpu):
    parts, table = run(tmp_path, "--minutes", "4")
    assert set(parts) == set(gpu.PARTS) and all(name in table for name in parts)
    ray = parts.pop("ray")
    assert (ray["status"], ray["reason"]) == ("left out", "ray is not installed")
    assert {found["status"] for found in parts.values()} == {"done"}
    assert parts["machine"]["torch"] and parts["machine"]["device"] == "cpu"
    for name in gpu.gpu_parts.MODELS:
        assert parts["repeat"][name]["equal"] and len(parts["repeat"][name]["sha256"]) == 64
        assert 0 <= parts["agreement"][name] <= parts["agreement"]["tolerance"]
        assert parts["speed"][name]["ratio"] > 0 and parts["speed"][name]["loop_images_per_second"] > 0
    assert parts["kill"]["equal"] and 0 < parts["kill"]["resumed_from"] <= parts["kill"]["killed_at"]
    contract = parts["contract"]
    assert contract["passed"] > 0 and contract["failed"] == 0 and contract["left_out"] > 0
    assert all(parts["deterministic"][name]["ratio"] > 0 for name in ("cnn", "gan"))
    assert parts["precision"]["cnn precision bfloat16"]["ratio"] > 0
    assert all(0 <= parts["cifar10-settings"][name]["validation"] <= 1 for name in ("recipe", "momentum"))
    for name in ("mnist", "cifar10"):
        assert 0 <= parts[name]["accuracy"] <= 1 and parts[name]["reached"] is False
        assert parts[name]["cold_seconds"] > parts[name]["warm_seconds"] > 0
        assert parts[f"gan-{name}"]["distance"] >= 0 and parts[f"gan-{name}"]["steps"] > 0


@pytest.mark.nightly
def test_the_part_ray_runs_where_ray_is_installed(tmp_path, gpu, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["gpu.py", "--miniature", "--json", str(tmp_path / "out"), "--only", "ray"]
    )
    assert gpu.main() == 0
    ray = json.loads((tmp_path / "out").read_text())["parts"]["ray"]
    assert ray["equal"] and ray["mode"] == "in process"


def test_a_part_that_fails_is_reported_and_the_others_run(tmp_path, gpu, monkeypatch, capsys):
    def fail(bench):
        raise ZeroDivisionError("by zero")

    def differ(bench):
        bench.check(False, "the bits differ")
        return {"equal": False}

    def wait(bench):
        while True:
            pass

    parts = {
        "fails": (fail, 0, 9),
        "differs": (differ, 0, 9),
        "good": (lambda bench: {"loss": float("nan")}, 0, 9),
        "needs time": (lambda bench: {}, 1000, 9),
        "endless": (wait, 0, 9),
    }
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(
        sys, "argv", ["gpu.py", "--miniature", "--minutes", "0.1", "--json", str(tmp_path / "out")]
    )
    assert gpu.main() == 1
    found = json.loads((tmp_path / "out").read_text())["parts"]
    statuses = [found[name]["status"] for name in parts]
    assert statuses == ["failed", "failed", "done", "left out", "failed"]
    assert found["fails"]["error"] == "ZeroDivisionError: by zero" and found["good"]["loss"] == "NaN"
    assert found["differs"] | {"equal": False, "error": "the bits differ"} == found["differs"]
    assert found["endless"]["error"] == "OutOfTime: no time is left"
    assert "in wait" in found["endless"]["traceback"]
    assert "failed: fails, differs, endless; left out: needs time" in capsys.readouterr().out


@pytest.fixture
def bench(tmp_path, gpu):
    """What the parts share, on a CPU."""
    data = gpu.synthetic_data(gpu.MINIATURE, tmp_path / "data")
    return gpu.Bench(gpu.torch.device("cpu"), gpu.MINIATURE, tmp_path, gpu.time.monotonic() + 60, data)


def test_a_part_that_is_ended_keeps_what_it_found_and_no_other_begins(gpu, bench, monkeypatch):
    def measure(bench):
        bench.found["first"] = 1.0
        os.kill(os.getpid(), signal.SIGTERM)
        while True:
            pass

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(gpu, "PARTS", {"ended": (measure, 0, 9), "next": (lambda bench: {}, 0, 9)})
    found = gpu.run_part("ended", bench)
    assert (found["first"], found["error"]) == (1.0, "Ended: ended by SIGTERM")
    assert gpu.run_part("next", bench)["status"] == "left out"
    assert signal.getsignal(signal.SIGTERM) is before


def test_trainings_that_differ_fail_their_part(gpu, bench, monkeypatch):
    digests = iter("aabbccddeeffgghi")
    monkeypatch.setattr(gpu.gpu_parts, "_train", lambda *given: next(digests))
    found = gpu.run_part("repeat", bench)
    assert (found["status"], found["error"]) == ("failed", "unet: two trainings differ")
    assert found["vae"]["equal"] and not found["unet"]["equal"]


def test_a_model_that_fails_leaves_the_others_of_its_part(gpu, bench, monkeypatch):
    def train(bench, name, settings, folder):
        if name == "gan":
            raise RuntimeError("no deterministic kernel")
        return "a"

    monkeypatch.setattr(gpu.gpu_parts, "_train", train)
    found = gpu.run_part("repeat", bench)
    assert (found["status"], found["error"]) == ("failed", "gan: RuntimeError: no deterministic kernel")
    assert (
        all(found[name]["equal"] for name in set(gpu.gpu_parts.MODELS) - {"gan"})
        and "in train" in found["tracebacks"][0]
    )
    assert "Traceback" not in "".join(gpu.rows("repeat", found))


def test_a_device_that_is_lost_is_used_again_by_a_new_process(tmp_path, gpu, monkeypatch):
    def fail(bench):
        raise RuntimeError("illegal memory access")

    commands = []
    run = lambda command: commands.append(command) or SimpleNamespace(returncode=7)
    monkeypatch.setattr(gpu, "PARTS", {"fails": (fail, 0, 9), "next": (fail, 0, 9)})
    monkeypatch.setattr(gpu, "is_lost", lambda device: True)
    monkeypatch.setattr(gpu.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--miniature", "--json", str(tmp_path / "out")])
    assert gpu.main() == 7 and commands[0][-2:] == ["--only", "next"]
    monkeypatch.setattr(gpu, "is_lost", lambda device: False)
    monkeypatch.setattr(sys, "argv", commands[0][1:])
    assert gpu.main() == 1
    assert json.loads((tmp_path / "out").read_text())["parts"].keys() == {"fails", "next"}


def test_contract_tests_that_fail_are_named(tmp_path, gpu, bench, monkeypatch):
    def calls(module, names, device):
        yield "test_one", ("ae/dense", lambda folder: None)
        yield "test_one", ("cnn", lambda folder: 1 / 0)
        yield "test_one", ("gan", lambda folder: __import__("no_such_package"))

    monkeypatch.setattr(gpu.gpu_parts.gpu_contract, "_calls", calls)
    found = gpu.run_part("contract", bench)
    counts = ("passed", "failed", "lacking_packages", "left_out")
    assert [found[name] for name in counts] == [1, 1, 1, 0]
    assert found["error"].startswith("test_one cnn: ZeroDivisionError: division by zero: yield")
    assert pytest.raises is sys.modules["pytest"].raises  # not the stand-in


def test_contract_tests_of_all_variants_are_called_those_of_kernels_first(gpu):
    from gpu_contract import _calls, _stand_in

    from tests.models import variants

    names = [*model_files.names(), *variants.ALL]
    with _stand_in():
        import tests.models.test_contract as module

        calls = list(_calls(module, names, "cpu"))
    first = [name for function, (name, _) in calls if "repeatable" in function]
    assert first == names and "repeatable" in calls[0][0]
    assert len({function for function, _ in calls}) > 10


def test_the_changes_of_the_recipe_for_cifar10_are_settings_of_the_classifier(gpu):
    import gpu_models

    kind = model_files.find("cnn").Config
    for change in gpu_models.CHANGES.values():
        model_files.validate(gpu_models.CLASSIFIERS["cifar10"].model | change, kind, where="cnn")


def test_a_precision_that_diverges_fails_its_part_and_the_others_are_measured(gpu, bench, monkeypatch):
    def compare(bench, name, settings, changes):
        if changes == {"precision": "float16"}:
            raise Diverged("loss is nan")
        return {"ratio": 2.0}

    monkeypatch.setattr(gpu.gpu_parts, "_compare", compare)
    monkeypatch.setattr(gpu.gpu_parts, "settings_for", lambda *given, **more: None)
    found = gpu.run_part("precision", bench)
    problems = "cnn precision float16: loss is nan; gan precision float16: loss is nan"
    assert (found["status"], found["error"]) == ("failed", problems)
    assert found["cnn precision bfloat16"] == found["gan tf32 True"] == {"ratio": 2.0}


def test_all_precisions_besides_the_default_are_measured_without_tf32_elsewhere(tmp_path, gpu, monkeypatch):
    import gpu_bench

    changes = [{"precision": "bfloat16"}, {"precision": "float16"}, {"tf32": True}, {"compile": True}]
    assert gpu_bench.variants() == changes
    matmul = gpu.torch.backends.cuda.matmul
    monkeypatch.setattr(gpu, "PARTS", {"flag": (lambda bench: {"tf32": matmul.allow_tf32}, 0, 9)})
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--miniature", "--json", str(tmp_path / "out")])
    matmul.allow_tf32 = True
    try:
        assert gpu.main() == 0
    finally:
        matmul.allow_tf32 = False
    assert json.loads((tmp_path / "out").read_text())["parts"]["flag"]["tf32"] is False


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "float16"), ((9, 0), "bfloat16")])
def test_gpus_train_in_the_short_precision_that_they_compute(gpu, monkeypatch, capability, precision):
    monkeypatch.setattr(gpu.torch.cuda, "get_device_capability", lambda device: capability)
    assert gpu.gpu_models.best_precision(gpu.torch.device("cuda")) == precision


def test_the_share_of_the_gpu_is_read_from_nvidia_smi(tmp_path, gpu, monkeypatch):
    program, printed = tmp_path / "nvidia-smi", tmp_path / "printed"
    program.write_text(f"#!/bin/sh\necho 40\necho 60\necho '[N/A]'\ntouch {printed}\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    properties = SimpleNamespace(uuid="ffc79498-8ff3")
    monkeypatch.setattr(gpu.torch.cuda, "get_device_properties", lambda device: properties)
    with gpu.gpu_parts.gpu_share(gpu.torch.device("cuda")) as samples:
        deadline = time.monotonic() + 60
        while not printed.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert samples == [0.4, 0.6]


def test_the_gan_for_mnist_has_the_settings_of_params_yaml(gpu):
    from pipeline.models.gan import GanConfig
    from pipeline.params import validate

    section = yaml.safe_load((ROOT / "params.yaml").read_text())["gan"]
    recipe = gpu.gpu_models.GANS["mnist"]
    assert GanConfig(**recipe.model) == validate(section["model"], GanConfig, "gan")
    assert {key: section["training"][key] for key in recipe.training} == recipe.training


def test_the_distance_of_the_gans_is_that_of_the_evaluation(gpu):
    import gpu_models

    random = np.random.default_rng(0)
    first, second = (frechet.moments(random.normal(shift, 1, (200, 9))) for shift in (0, 0.5))
    assert gpu_models._frechet(first, second) == pytest.approx(frechet.distance(first, second), rel=1e-9)


def test_data_that_cannot_be_read_are_left_out(tmp_path, gpu, capsys):
    (tmp_path / "cifar10.npz").write_bytes(b"no archive")
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist/manifest.json").write_text("{}")
    assert gpu.gpu_data.open_all(tmp_path, tmp_path / "written") == {}
    assert "mnist is left out" in (printed := capsys.readouterr().err) and "cifar10 is left out" in printed


def test_arrays_in_a_file_become_a_data_set(tmp_path, gpu):
    import numpy as np

    images = np.arange(40 * 8 * 8 * 3, dtype=np.uint32).reshape(40, 8, 8, 3).astype(np.uint8)
    labels = np.arange(40) % 4
    arrays = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels}
    np.savez(tmp_path / "cifar10.npz", **arrays)
    (data,) = gpu.gpu_data.open_all(tmp_path, tmp_path / "written").values()
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 40)
    assert (data.test.rows(np.arange(40))["image"] == images.transpose(0, 3, 1, 2)).all()
    kept = np.concatenate([split.labels for split in (data.train, data.validation)])
    assert sorted(kept) == sorted(labels)
