"""Derivations: how one shard set is made of another, one module each, such as `long`.

A module of this package that defines `DERIVATION` is a derivation, under the module's name; nothing
else lists them. `--data long(wikipedia,4096)` names one, with a source and arguments. This module
is imported to check options, and loads no NumPy.
"""

import pkgutil


def derivation_names() -> list[str]:
    """Return the names of all derivations: the modules of this package except `base`."""
    module_names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in module_names if name != "base")
