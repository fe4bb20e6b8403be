"""What RecBole 1.2.1 (February 2025) needs to import and run under a current NumPy, pandas and torch.

Runs inside the rival's environment only; `import recbole_shim` comes before the first import of RecBole. Nothing here
touches what is timed: names that were removed come back, and modules that are imported but not used here are empty.
"""

import sys
import types
from typing import Any

import numpy as np

REMOVED_FROM_NUMPY = {  # RecBole's Config.compatibility_settings reads the right-hand names, its metrics the left
    "float": float,
    "float_": np.float64,
    "complex_": np.complex128,
    "unicode_": np.str_,
}


class _Ignored:
    """Stands for a class whose calls have no effect, such as a TensorBoard writer."""

    def __init__(self, *arguments: Any, **options: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: None


def _empty_module(name: str, **content: Any) -> None:
    module = types.ModuleType(name)
    vars(module).update(content)
    sys.modules[name] = module


def install() -> None:
    """Put the removed names and the empty modules in place."""
    for name, value in REMOVED_FROM_NUMPY.items():
        if name not in vars(np):
            setattr(np, name, value)
    _empty_module("ray", tune=None)  # imported by recbole.quick_start, capped there at 2.6.3
    _empty_module("torch.utils.tensorboard", SummaryWriter=_Ignored)


install()
