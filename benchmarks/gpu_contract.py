"""For gpu.py: run the contract tests of the models, without pytest, the most telling ones first."""

import importlib
import inspect
import itertools
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

# Parts of the names of test functions in this order: all operations in both directions first.
FIRST = ("repeatable", "output_images", "evaluation", "resumes", "finite_scalar", "written", "microbatches")
Call = tuple[str, Callable[[Path], None]]


def run_tests(device: str, deadline: float) -> tuple[dict[str, Any], dict[str, str]]:
    """Call the functions of tests/models/test_contract.py until ``deadline``, by ``time.monotonic()``.

    Each is called for all models and variants before the next one. Returns the numbers of calls, and the
    traceback of each that failed.
    """
    from pipeline.core.determinism import allow_tf32

    passed, lacking, begun, errors = 0, 0, dict[str, None](), dict[str, str]()
    with _stand_in():
        module = importlib.import_module("tests.models.test_contract")
        variants = importlib.import_module("tests.models.variants")
        from pipeline.core import model_files

        calls = list(_calls(module, [*model_files.names(), *variants.ALL], device))
        for function, (name, call) in calls:
            if time.monotonic() > deadline:
                break
            begun[function] = None
            allow_tf32(False)
            with tempfile.TemporaryDirectory() as temporary:
                try:
                    call(Path(temporary))
                    passed += 1
                except (
                    ModuleNotFoundError
                ):  # torch.compile and torch.func import packages that may be missing
                    lacking += 1
                except Exception:
                    errors[f"{function} {name}"] = traceback.format_exc()[-2000:]
    counts = {"passed": passed, "failed": len(errors), "lacking_packages": lacking}
    left_out = len(calls) - sum(counts.values())
    return counts | {"left_out": left_out, "functions_begun": len(begun)}, errors


def _calls(module: ModuleType, names: list[str], device: str) -> Iterator[tuple[str, Call]]:
    """The name of the function, what it is called with, and the call with a folder for temporary files."""
    functions = [
        pair for pair in inspect.getmembers(module, inspect.isfunction) if pair[0].startswith("test_")
    ]
    for function, test in sorted(functions, key=lambda pair: _rank(pair[0])):
        needed = inspect.signature(test).parameters
        if "device" not in needed:
            continue
        parameters = dict(getattr(test, "parameters", ()))
        for values in itertools.product(*list(parameters.values())[:1]):
            for name in names:
                given = {"device": device, "name": name, **dict(zip(parameters, values))}

                def call(folder: Path, test: Any = test, given: Any = given, needed: Any = needed) -> None:
                    every = given | {"tmp_path": folder}
                    test(**{key: every[key] for key in needed})

                yield function, (f"{name} {values or ''}".strip(), call)


def _rank(function: str) -> int:
    return next((index for index, part in enumerate(FIRST) if part in function), len(FIRST))


@contextmanager
def _stand_in() -> Iterator[None]:
    """A module ``pytest`` with as much as test_contract.py uses; the real one may be missing."""

    def parametrize(name: str, values: Any, ids: Any = None) -> Any:
        def mark(function: Any) -> Any:
            function.parameters = [*getattr(function, "parameters", ()), (name, list(values))]
            return function

        return mark

    marks = SimpleNamespace(parametrize=parametrize, usefixtures=lambda *names: None, gpu=None, nightly=None)
    module: Any = ModuleType("pytest")
    module.mark, module.param = marks, lambda value, marks=None: value
    module.fixture = lambda **given: lambda function: function
    own = [name for name in sys.modules if name == "pytest" or name.partition(".")[0] == "tests"]
    before = {name: sys.modules.pop(name) for name in own}  # they were imported with the real one
    sys.modules["pytest"] = module
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name == "pytest" or name.partition(".")[0] == "tests"]:
            del sys.modules[name]
        sys.modules.update(before)
