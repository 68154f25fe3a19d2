"""Names that a package offers and imports once they are asked for: what they need may be large, or not be there."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from disagg.plan.errors import DisaggError, PackageError, in_words


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
            raise package_error(error) from (None if isinstance(error, ModuleNotFoundError) else error)

    return __getattr__


def package_error(error: BaseException) -> PackageError:
    error = first_of(error)
    name = getattr(error, "name", None)
    if isinstance(error, ModuleNotFoundError) and name and "." not in name:
        what = f"the package {name} is not installed in this Python. Choose the kernel of this project (Kernel → "
        advice = "Change Kernel…), or type `make setup` in its folder and restart the kernel"
        return PackageError(what + advice, name=name)
    cause = in_words(error).strip().split("\n")[0]
    what = f"a package that is needed here can't be imported ({cause}). Restart the kernel; if that does not help, "
    return PackageError(f"{what}type `make setup` in this project's folder and restart it again", name=name)


def first_of(error: BaseException) -> BaseException:
    """The cause at the start of a chain of errors: packages that import on demand raise one of their own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
