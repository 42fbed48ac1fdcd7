"""For gpu.py: run the contract tests of the models, with pytest or, where it is missing, without."""

import importlib
import inspect
import itertools
import re
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDERS = ("models", "core")
OPTIONS = ("-p", "no:cacheprovider", "-q", "--no-header", "-rfE")


def run_pytest(device: str, chosen: str, seconds: float) -> tuple[dict[str, int], str]:
    """Run the tests with marker ``gpu``, or on a CPU those that match ``chosen``: counts, and the output."""
    marker = "gpu" if device == "cuda" else "not gpu"
    files = [path for folder in FOLDERS for path in sorted((ROOT / "tests" / folder).glob("test_*.py"))]
    files = [path for path in files if "mark.gpu" in path.read_text()]  # others need more packages
    command = [sys.executable, "-m", "pytest", *map(str, files), *OPTIONS, "-m", marker, "-k", chosen]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    last = done.stdout.strip().splitlines()[-1:] or [done.stderr[-300:]]
    counts = {what: int(count) for count, what in re.findall(r"(\d+) (passed|failed|skipped|error)", last[0])}
    if done.returncode and not counts.get("failed"):
        counts["error"] = counts.get("error", 0) + 1
    return counts, done.stdout + done.stderr


def run_functions(device: str, chosen: str) -> tuple[dict[str, int], str]:
    """Call the functions of tests/models/test_contract.py that match ``chosen`` for Darkroom's own models.

    ``chosen`` is a regular expression for their names.
    """
    from pipeline.core import model_files

    counts, errors = {"passed": 0, "failed": 0}, []
    with _stand_in():
        module = importlib.import_module("tests.models.test_contract")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if not name.startswith("test_") or not re.search(chosen, name):
                continue
            needed = inspect.signature(function).parameters
            if "device" not in needed and device == "cuda":
                continue
            lists = {**dict(function.__dict__.get("parameters", ())), "name": model_files.names()}
            for values in itertools.product(*lists.values()):
                with tempfile.TemporaryDirectory() as temporary:
                    given = {"device": device, "tmp_path": Path(temporary), **dict(zip(lists, values))}
                    try:
                        function(**{key: given[key] for key in needed})
                        counts["passed"] += 1
                    except Exception as error:
                        counts["failed"] += 1
                        errors.append(f"{name} {values}: {error!r}")
    return counts, "\n".join(errors)


@contextmanager
def _stand_in() -> Any:
    """A module ``pytest`` with as much as test_contract.py uses, while pytest is not installed."""

    def parametrize(name: str, values: Any, ids: Any = None) -> Any:
        def mark(function: Any) -> Any:
            function.parameters = [*getattr(function, "parameters", ()), (name, list(values))]
            return function

        return mark

    @contextmanager
    def raises(kind: type[Exception], match: str = "") -> Any:
        try:
            yield
        except kind as error:
            assert re.search(match, str(error)), f"{error} does not match {match}"
        else:
            raise AssertionError(f"no {kind.__name__}")

    marks = SimpleNamespace(parametrize=parametrize, usefixtures=lambda *names: None, gpu=None, nightly=None)
    module: Any = ModuleType("pytest")
    module.mark, module.raises = marks, raises
    module.param = lambda value, marks=None: value
    module.fixture = lambda **given: lambda function: function
    sys.modules["pytest"] = module
    try:
        yield
    finally:
        del sys.modules["pytest"]


def pytest_is_installed() -> bool:
    """Whether pytest can run with the settings of pyproject.toml."""
    try:
        importlib.import_module("pytest_timeout")
    except ModuleNotFoundError:
        return False
    return True
