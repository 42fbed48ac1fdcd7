"""dvc.yaml, params.yaml and the code agree."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import pipeline
from pipeline import doctor
from pipeline.core import model_files
from pipeline.core.dataset import Dataset
from pipeline.core.settings import TrainingSettings
from pipeline.environment import Environment
from pipeline.launch.training import Training
from tests.project import MODELS, SHIPPED_MODELS
from tests.test_walls import ROOT, imports

PLAN = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = PLAN["stages"]
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
# Modules that cannot change a result: they parse settings, write files, report errors, start processes.
NEUTRAL = {
    "__init__.py",
    "divergence.py",
    "dvc_parent.py",
    "environment.py",
    "errors.py",
    "files.py",
    "git.py",
    "limits.py",
    "openmp.py",
    "params.py",
    "process.py",
    "progress.py",
    "settings_check.py",
}
# Every stage first checks all sections of params.yaml. This can stop a stage but not change its result, so
# neither this module nor the classes of the sections are dependencies of every stage.
VALIDATES = ROOT / "pipeline/settings_check.py"


def closure(*files):
    """All files of the pipeline that ``files`` import, directly or indirectly."""
    found, todo = set(), list(files)
    while todo:
        path = todo.pop()
        if path in found:
            continue
        found.add(path)
        if path == VALIDATES:
            continue
        for module in imports(path):
            base = ROOT / Path(*module.split("."))
            todo += [file for file in (base.with_suffix(".py"), base / "__init__.py") if file.exists()]
    return found


def code_of(name):
    """The files that the result of a stage depends on, by its imports."""
    stage = STAGES[name]
    start = [ROOT / Path(*stage["cmd"].split()[2].split(".")).with_suffix(".py")]
    paths = {path.relative_to(ROOT).as_posix() for path in closure(*start)}
    return {
        path for path in paths if Path(path).name not in NEUTRAL and not path.startswith("pipeline/tracking/")
    }


def own_code(name):
    """The file or folder of the model ``name``."""
    return model_files.code_path(name, ROOT / "pipeline").relative_to(ROOT).as_posix()


def trained_by(path):
    """The models whose training depends on the file ``path``, by their stages."""
    deps = {
        name.removeprefix("train-"): stage["deps"]
        for name, stage in STAGES.items()
        if name.startswith("train-")
    }
    return {
        name for name, own in deps.items() if any(path == dep or path.startswith(f"{dep}/") for dep in own)
    }


def test_the_shipped_stages_are_all_there():
    trained = ["train-gan", "train-vae", "train-ae", "train-cnn", "train-vqvae", "train-transformer"]
    composed = ["compose-clips", "train-rcnn", "compose-scenes", "train-unet"]
    shipped = ["download", "preprocess", *trained, *composed, "evaluate"]
    assert [name for name in STAGES if name in shipped] == shipped


def test_every_model_has_a_file_a_section_and_a_stage():
    models = set(model_files.names())
    assert models == {name.removeprefix("train-") for name in STAGES if name.startswith("train-")}
    assert models == set(PARAMS) - {"clips", "data", "evaluate", "gates", "retrain", "scenes", "search"}
    for name in models:
        stage = STAGES[f"train-{name}"]
        assert stage["cmd"] == f"python -m stages.train {name}" and stage["params"] == [name]
        assert stage["outs"] == [f"models/{name}", f"history/{name}"]
        kind = model_files.find(name)
        needs = [f"models/{need}" for need in kind.needs]
        assert stage["deps"] == [
            f"data/processed/{kind.dataset}",
            *needs,
            "pipeline/core",
            "pipeline/layers",
            own_code(name),
            "stages/train.py",
        ]
    assert {"models", "history"} <= set(STAGES["evaluate"]["deps"])


def test_each_shipped_model_has_a_chart_of_its_curves():
    charts = [str(plot) for plot in PLAN["plots"]]
    for name in sorted(SHIPPED_MODELS):
        assert any(f"plots/curves/{name}/" in chart for chart in charts), name


@pytest.mark.parametrize("name", [name for name in STAGES if not name.startswith("train-")])
def test_a_stage_depends_on_all_the_code_that_makes_its_result_and_on_no_other(name):
    declared = {dep for dep in STAGES[name]["deps"] if dep.startswith(("pipeline", "stages"))}
    needed = code_of(name)
    missing = {
        path for path in needed if not any(path == dep or path.startswith(f"{dep}/") for dep in declared)
    }
    idle = {dep for dep in declared if not any(path == dep or path.startswith(f"{dep}/") for path in needed)}
    assert not missing and idle <= {
        "pipeline/layers",
        "pipeline/models",
    }  # models are imported by name, and layers by them


def test_core_layers_and_models_import_nothing_else_that_could_change_a_model():
    for path in [*ROOT.glob("pipeline/core/*.py"), *ROOT.glob("pipeline/layers/*.py")]:
        for used in closure(path):
            assert used.parent.name in ("core", "layers") or used.name in NEUTRAL, f"{path} imports {used}"
    for name in model_files.names():
        own = ROOT / own_code(name)
        for path in own.glob("**/*.py") if own.is_dir() else [own]:
            for used in closure(path):
                known = used.parent.name in ("core", "layers") or used.is_relative_to(own)
                assert known or used.name in NEUTRAL, f"{path} imports {used}"


def test_each_change_of_code_makes_the_right_trainings_stale():
    models = set(model_files.names())
    for file in ROOT.glob("pipeline/**/*.py"):
        path = file.relative_to(ROOT).as_posix()
        expected = (
            models
            if path.startswith(("pipeline/core/", "pipeline/layers/"))
            else {name for name in models if path == own_code(name) or path.startswith(f"{own_code(name)}/")}
        )
        assert trained_by(path) == expected, path


def test_a_trainings_fingerprint_changes_with_the_code_of_its_stage_and_with_no_other(
    tmp_path, monkeypatch, processed_digits
):
    """Otherwise a checkpoint of other code could be resumed."""
    shutil.copytree(ROOT / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(pipeline, "__file__", str(tmp_path / "pipeline/__init__.py"))
    data = Dataset.open(processed_digits)

    def fingerprints():
        own = {
            name: Training(name, TrainingSettings(), model_files.find(name).Config(), data) for name in MODELS
        }
        return {name: training.fingerprint for name, training in own.items()}

    before = fingerprints()
    for path in (
        "core/loop.py",
        "layers/augmentation.py",
        "models/gan/__init__.py",
        "launch/worker.py",
        "tracking/runs.py",
        "evaluation/report.py",
        "cli/repro.py",
    ):
        text = (tmp_path / "pipeline" / path).read_text()
        (tmp_path / "pipeline" / path).write_text(text + "# changed\n")
        changed = {name for name, fingerprint in fingerprints().items() if fingerprint != before[name]}
        assert changed == trained_by(f"pipeline/{path}") & set(MODELS), path
        (tmp_path / "pipeline" / path).write_text(text)


@pytest.mark.parametrize("name", STAGES)
def test_no_value_of_the_params_reaches_a_shell(name):
    assert "$" not in STAGES[name]["cmd"] and STAGES[name]["cmd"].startswith("python -m stages.")


@pytest.mark.parametrize("name", STAGES)
def test_no_stage_depends_on_the_environment(name):
    for key in STAGES[name].get("params", []):
        assert not any(word in key for word in ("worker", "ray", "tracking", "storage", "device", "mirror"))


def test_the_shipped_params_are_valid(monkeypatch):
    monkeypatch.chdir(ROOT)
    findings = doctor.examine(Environment(root=ROOT))
    assert [finding for finding in findings if not finding.well and "params" in finding.what] == []


def test_dvc_exp_run_changes_the_line_of_the_param_and_no_other(tmp_path):
    from dvc.utils.serialize import modify_yaml  # what `dvc exp run -S` writes params.yaml with

    before = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(before)
    with modify_yaml(tmp_path / "params.yaml") as params:
        params["evaluate"]["seed"] += 1
    lines = zip(before.splitlines(), (tmp_path / "params.yaml").read_text().splitlines(), strict=True)
    assert [before.split(":")[0].strip() for before, after in lines if before != after] == ["seed"]


def test_a_clone_has_the_same_bytes_also_where_git_converts_line_ends(tmp_path):
    """Otherwise every stage would be stale."""
    source = tmp_path / "source"
    source.mkdir()
    for name in (".gitattributes", "dvc.yaml", "pipeline/errors.py"):
        (source / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    git = ["git", "-c", "core.autocrlf=true", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "files"]):
        subprocess.run([*git, *words], cwd=source, check=True, capture_output=True)
    subprocess.run([*git, "clone", "-q", "source", "clone"], cwd=tmp_path, check=True, capture_output=True)
    for name in ("dvc.yaml", "pipeline/errors.py"):
        assert (tmp_path / "clone" / name).read_bytes() == (ROOT / name).read_bytes()


def test_git_ignores_what_dvc_keeps_and_nothing_else_that_a_stage_makes():
    ignored = (ROOT / ".gitignore").read_text().split()
    for stage in STAGES.values():
        for entry in [*stage.get("outs", []), *stage.get("metrics", [])]:
            path, flags = next(iter(entry.items())) if isinstance(entry, dict) else (entry, {})
            kept_by_dvc = flags.get("cache", True)
            hidden = any(f"/{path}".startswith(line.rstrip("/")) for line in ignored if line.startswith("/"))
            assert hidden == kept_by_dvc, path
