"""The pure wings import the standard library and each other: by reading them, and by importing where torch is not."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import disagg

ROOT = Path(disagg.__file__).parent
WINGS = {"plan": ("plan",), "trace": ("plan", "trace"), "twin": ("plan", "trace", "twin")}
WINGS["monitor"] = (*WINGS["twin"], "monitor")
FILES = [path for wing in WINGS for path in sorted((ROOT / wing).glob("*.py"))]
SEEDED = ("fault_plan", "faulty_simulation", "workloads")  # these draw from `random.Random(seed)`, and nothing else
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


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_imports_by_reading(path):
    if path.stem == "fault_injection":
        pytest.skip("strikes real workers, between threads")
    allowed = tuple(f"disagg.{wing}" for wing in WINGS[path.parent.name])
    for name in imported(path):
        top = name.split(".")[0]
        assert name.startswith(allowed) or top in sys.stdlib_module_names, f"{path.name} imports {name}"
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
importlib.import_module("disagg")
before = set(sys.modules)
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*sorted(name for name in set(sys.modules) - before if name.startswith("disagg")))
"""


@pytest.mark.parametrize("wing", WINGS)
def test_imports_with_torch_blocked(wing):
    names = [f"disagg.{wing}.{path.stem}" for path in sorted((ROOT / wing).glob("[!_]*.py"))]
    path = os.pathsep.join([str(ROOT.parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *names], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    others = [name for name in done.stdout.split() if name.split(".")[1] not in WINGS[wing]]
    assert not others, "no other floor"
