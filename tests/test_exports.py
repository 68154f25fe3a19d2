"""What a package exports: a name is one thing, whatever was imported before it, and in whichever order."""

import contextlib
import importlib
import pkgutil
import subprocess
import sys

import pytest

import disagg


def packages() -> list[str]:
    found = pkgutil.walk_packages(disagg.__path__, "disagg.")
    return ["disagg", *(module.name for module in found if module.ispkg)]


def exported(package) -> list[str]:
    return list(getattr(package, "__all__", ()))


def clashes(package) -> set[str]:
    """Names that stand for something exported and for a module as well."""
    return set(exported(package)) & {module.name for module in pkgutil.iter_modules(package.__path__)}


@pytest.mark.parametrize("name", packages())
def test_no_exported_name_is_a_module_of_its_package(name):
    assert clashes(importlib.import_module(name)) == set()


def test_packages_with_exports_are_found():
    """The control, and the case: a function had its module's name."""
    assert {"disagg", "disagg.show", "disagg.course"} <= {n for n in packages() if exported(sys.modules[n])}
    package = importlib.import_module("disagg.show")
    assert clashes(package) == set() and len(exported(package)) == 6
    clashing = type("package", (), {"__all__": ["live", "watch"], "__path__": package.__path__})
    assert clashes(clashing) == {"live"}


@pytest.mark.parametrize("name", ["disagg", "disagg.show", "disagg.course"])
def test_every_export_stays_what_it_was_when_all_modules_are_there(name):
    package = importlib.import_module(name)
    before = {word: getattr(package, word) for word in exported(package)}
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("__"):
            with contextlib.suppress(ImportError):  # of an extra that is not installed
                importlib.import_module(f"{name}.{module.name}")
    assert all(getattr(package, word) is thing for word, thing in before.items())
    assert all(map(callable, before.values()))


def test_looking_at_all_modules_for_a_name_imports_nothing():
    """torch's compiler does, with names of its own; what is not installed must not surface there."""
    code = """
import sys
import disagg.show
sys.modules["ipywidgets"] = sys.modules["matplotlib"] = None
for module in list(sys.modules.values()):
    assert getattr(module, "a_name_of_nobody", None) is None
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
