"""Names that a package offers and imports once they are asked for: what they need may be large, or not be there."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from disagg.plan.errors import DisaggError, PackageError


def imported_later(package: str, words: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__` (PEP 562): each word comes out of its module once it is first asked for. PackageError
    where something that the module needs can't be imported."""

    def __getattr__(name: str) -> Any:
        if name not in words:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            return getattr(importlib.import_module(words[name]), name)
        except DisaggError:
            raise
        except Exception as error:  # a broken package may raise anything while it is imported
            raise PackageError.of(error) from (None if isinstance(error, ModuleNotFoundError) else error)

    return __getattr__
