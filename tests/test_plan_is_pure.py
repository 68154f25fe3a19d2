"""`plan/` imports the standard library and itself: by reading it, and by importing it where torch can't be had."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import disagg.plan

PLAN = Path(disagg.plan.__file__).parent
FILES = sorted(PLAN.glob("*.py"))
SEEDED = ("faults", "trial", "drawn", "workloads")  # these draw from `random.Random(seed)`, and from nothing else
CLOCKS = ("time", "datetime", "threading", "asyncio", "random", "socket", "subprocess", "pickle")


def imported(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            names.append(node.module)
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_imports_by_reading(path):
    for name in imported(path):
        if (path.stem, name) == ("results", "disagg.show.page"):
            continue  # inside `Run.to_html` alone; the next test sees that importing the floor doesn't follow it
        top = name.split(".")[0]
        assert name.startswith("disagg.plan") or top in sys.stdlib_module_names, f"{path.name} imports {name}"
        if (path.stem in SEEDED, name) == (True, "random"):
            uses = re.findall(r"\brandom\.(\w+)(\(\)?)", path.read_text())
            assert set(uses) == {("Random", "(")}, f"{path.name} draws without a seed: {uses}"
            continue
        assert top not in CLOCKS, f"{path.name} imports {name}: no clock, no thread, no chance of its own"


BLOCKED = """
import sys
for name in ("torch", "numpy", "transformers"):
    sys.modules[name] = None
import importlib
for name in sys.argv[1:]:
    importlib.import_module("disagg.plan." + name)
print(*sorted(name for name in sys.modules if name.startswith("disagg")))
"""


def test_imports_with_torch_blocked():
    names = [path.stem for path in FILES if path.stem != "__init__"]
    path = os.pathsep.join([str(PLAN.parent.parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *names], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert set(loaded) == {"disagg", "disagg.plan", *(f"disagg.plan.{name}" for name in names)}, "no other floor"
