"""Processes in which pipeline/core and pipeline/models find only the packages that they need."""

import os
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
NEEDED = {"torch", "numpy", "pydantic", "safetensors"}
IMPORTED_AS = {"ruamel.yaml": "ruamel", "pillow": "PIL", "scikit-learn": "sklearn"}
HOOK = """
import sys

class Missing:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing)
"""


def blocked() -> set[str]:
    """The modules of Darkroom's other dependencies, and of pytest."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    packages = {re.match(r"[\w.-]+", dependency)[0] for dependency in dependencies} - NEEDED
    return {IMPORTED_AS.get(package, package) for package in packages} | {"pytest", "yaml"}


def environment(folder: Path) -> dict[str, str]:
    """The variables of a process that cannot import what :func:`blocked` names. Its children cannot either.

    Python imports the file ``sitecustomize.py``, which is written to ``folder``, when it starts.
    """
    (folder / "sitecustomize.py").write_text(HOOK.format(names=blocked()))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (folder, ROOT))), "OMP_NUM_THREADS": "1"}
