"""The rules for imports between folders."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests import core_only

ROOT = Path(__file__).parents[1]
FLOORS = [
    {"errors", "divergence", "files", "estimate", "limits", "threads"},
    {"params", "dvc_parent", "environment", "openmp", "process", "progress", "git"},
    {"core"},
    {"data", "layers"},
    {"models"},
    {"tracking"},
    {"launch", "evaluation"},
    {"retraining", "settings_check", "inspection", "recipes", "search"},
    {"cli", "leaderboard", "doctor", "repro", "pull_request", "stages"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
RAY = {
    *(f"pipeline/launch/{name}.py" for name in ("worker", "ray_train", "plan", "preflight", "rendezvous")),
    "pipeline/data/decoding.py",
    "pipeline/process.py",
}
TRAIN = """
import sys
from pathlib import Path

from pipeline.core import best_model, initial_weights, model_files
from pipeline.core.abilities import abilities
from pipeline.core.loop import Loop
from pipeline.core.settings import TrainingSettings
from tests.arrays import ArrayDataset

data, folder = ArrayDataset(), Path(sys.argv[1])
settings = TrainingSettings(num_steps=2, batch_size=8, ema_decay=0.9)
for name in ("ae", "cnn", "gan", "vae", "vqvae", "transformer"):
    kind = model_files.find(name)
    needs = {need: model_files.load(folder / need / "model") for need in kind.needs}
    task = model_files.build(name, kind.Config(), data.spec, 0, needs)
    trained = Loop(task, data, settings, folder / name).run()
    model_files.write(trained, folder / name / "model", {})
    assert abilities(model_files.load(folder / name / "model"))
"""
FILES = sorted([*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("stages/*.py")])


def imports(path):
    """The modules that a file imports anywhere. Relative imports are refused."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (
                f"{node.module}.{alias.name}" for alias in node.names if node.module.startswith("pipeline")
            )


def room(module):
    """pipeline.core.dataset -> data; stages.train -> stages."""
    parts = module.split(".")
    return "stages" if parts[0] == "stages" else parts[1] if len(parts) > 1 else None


def named(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=named)
def test_no_folder_imports_from_one_above_it(path):
    own = room(named(path).removesuffix(".py").replace("/", "."))
    if own == "__init__":
        return
    assert own in FLOOR, f"{named(path)} has no floor: put it into one"
    for module in imports(path):
        if module.startswith(("pipeline.", "stages")) and (other := room(module)) != "__init__":
            assert FLOOR.get(other, 99) <= FLOOR[own], f"{named(path)} (floor {FLOOR[own]}) imports {module}"


@pytest.mark.parametrize("path", FILES, ids=named)
def test_each_heavy_library_is_imported_in_one_place(path):
    packages = {module.split(".")[0] for module in imports(path)}
    assert "ray" not in packages or named(path) in RAY
    assert "mlflow" not in packages or named(path).startswith("pipeline/tracking/")
    assert not packages & {"pickle", "torchvision", "shelve", "marshal"}


@pytest.mark.parametrize("path", FILES, ids=named)
def test_only_the_environment_reads_the_environment(path):
    if named(path) not in ("pipeline/environment.py",):
        assert "os.environ" not in path.read_text() and "getenv" not in path.read_text()


@pytest.mark.parametrize("path", FILES, ids=named)
def test_no_code_calls_a_global_generator(path):
    text = path.read_text()
    for call in (
        "torch.manual_seed",
        "np.random.seed",
        "np.random.rand",
        "random.seed",
        "torch.rand_like",
        "torch.randn_like",
        "nn.Dropout",
        "BatchNorm",
    ):
        assert call not in text, f"{named(path)}: {call}"


def test_files_are_short_and_have_specific_names():
    folders = ("pipeline", "stages", "tests", "benchmarks", "infra")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 200
    assert [named(path) for path in files if len(path.read_text().splitlines()) > 350] == []
    vague = {"utils", "common", "helpers", "manager", "handler", "misc"}
    assert not vague & {path.stem for path in files}


def test_models_know_neither_ray_nor_mlflow_nor_dvc_nor_the_data():
    for path in ROOT.glob("pipeline/models/**/*.py"):
        for module in imports(path):
            assert module.split(".")[0] not in {"ray", "mlflow", "dvc"} and not module.startswith(
                "pipeline.data"
            )


def test_core_and_models_train_with_torch_numpy_pydantic_and_safetensors_alone(tmp_path):
    assert {"ray", "mlflow", "dvc", "ruamel", "PIL", "sklearn", "filelock"} <= core_only.blocked()
    command, variables = [sys.executable, "-c", TRAIN, str(tmp_path)], core_only.environment(tmp_path)
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert all(
        (tmp_path / name / "model/model.safetensors").is_file()
        for name in ("ae", "cnn", "gan", "vae", "vqvae", "transformer")
    )
    assert not list(tmp_path.glob("*/samples/*.png"))  # Pillow draws them
