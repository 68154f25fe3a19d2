"""A package that is missing or broken is told by the error that began it, wherever in its import that was."""

import re
import subprocess
import sys

import pytest

from disagg.plan.errors import PackageError, first_of
from disagg.run.model import model as model_module
from disagg.run.model.model import load_model

BROKEN = """
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}: raise {error}
sys.meta_path.insert(0, Broken())
try: from {line}
except Exception as error: print(type(error).__name__, error)
"""
CASES = {
    ("torch", "ModuleNotFoundError('No module named x', name='x')"): "the package x is not installed",
    ("transformers.modeling_utils", "ImportError('odd')"): r"imported \(ImportError: odd\)",
    ("transformers.modeling_utils", "RuntimeError('operator nms does not exist')"): "RuntimeError: operator nms does",
    ("torch._C", "OSError('libcudart.so.12: cannot open shared object file')"): "OSError: libcudart.so.12: cannot",
    (
        "transformers.modeling_utils",
        "ModuleNotFoundError(\"No module named 'a.b'\", name='a.b')",
    ): "No module named 'a.b'",
}


@pytest.mark.parametrize("name, error", CASES)
@pytest.mark.parametrize("line", ["disagg import Engine", "disagg.show import panel"])
def test_a_broken_package_names_its_cause(line, name, error):
    code = BROKEN.format(name=name, error=error, line=line)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=110)
    assert done.stdout.startswith("PackageError ") and "None" not in done.stdout, done.stdout + done.stderr[-300:]
    assert re.search(CASES[name, error], done.stdout) and "`make setup`" in done.stdout


def test_a_module_that_is_only_missed_at_a_load_is_reported_too(monkeypatch):
    def wrapped():
        try:
            raise RuntimeError("operator nms does not exist")
        except RuntimeError as error:
            raise ModuleNotFoundError("Could not import module 'LlamaForCausalLM'") from error

    monkeypatch.setattr(model_module, "make_tiny_llama", wrapped)
    with pytest.raises(PackageError, match=r"can't be imported \(RuntimeError: operator nms") as caught:
        load_model("tiny")
    assert isinstance(first_of(caught.value), RuntimeError)
