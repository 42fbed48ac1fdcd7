"""Settings of the models other than their defaults; each must keep the contract (test_contract.py).

The file of each model has ``VARIANTS``: the name of each variant, and the settings that differ.
"""

import importlib
import pkgutil

ALL = {
    f"{module.name}/{variant}": (module.name, settings)
    for module in pkgutil.iter_modules(__path__)
    for variant, settings in importlib.import_module(f"{__name__}.{module.name}").VARIANTS.items()
}
