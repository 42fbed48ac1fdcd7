"""Settings of the models other than their defaults; each must keep the contract (test_contract.py).

The file of each model has ``VARIANTS``: the name of each variant, and the settings that differ. The first one
of each model is tested every time, the others every night.
"""

import importlib
import pkgutil

import pytest

ALL = {
    f"{module.name}/{variant}": (module.name, settings)
    for module in pkgutil.iter_modules(__path__)
    for variant, settings in importlib.import_module(f"{__name__}.{module.name}").VARIANTS.items()
}
_DAILY = {next(name for name in ALL if ALL[name][0] == model) for model, _ in ALL.values()}
PARAMS = [name if name in _DAILY else pytest.param(name, marks=pytest.mark.nightly) for name in ALL]
