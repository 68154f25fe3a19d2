"""SmolLM2's cache folder where there is no home, no leave to write, or no room: words, and nothing half-done."""

import errno
import os
import shutil
from collections import namedtuple

import pytest
from safetensors import SafetensorError

from benchmarks.robustness.architectures import make_tiny
from disagg.cli import doctor
from disagg.plan.errors import ModelError
from disagg.run.model import weights
from disagg.run.model.model import load_model


@pytest.fixture
def homeless(monkeypatch):
    """As in a container with an arbitrary user id."""
    for name in ("HOME", "XDG_CACHE_HOME", "DISAGG_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder, and a file that passes for the pinned one."""
    gguf = tmp_path / weights.GGUF_NAME
    gguf.write_bytes(b"pretend")
    monkeypatch.setenv("DISAGG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "find_gguf", lambda: gguf)
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(weights, "GGUF_SHA256", weights.sha256(gguf))
    return tmp_path / "cache"


def test_without_a_home_the_advice_is_to_set_the_cache_folder(homeless):
    with pytest.raises(ModelError, match="no home folder .* DISAGG_CACHE to a folder"):
        load_model("smollm2")
    assert not weights.smollm2_ready()


def test_without_a_home_everything_else_works(homeless, tmp_path):
    load_model(str(make_tiny("llama", tmp_path)))
    assert any("not converted yet" in finding for _, finding in doctor.findings())


def test_too_small_a_disk_is_refused_before_anything_is_written(cache, monkeypatch):
    usage = namedtuple("usage", "total used free")(2**40, 2**40 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(weights, "write_safetensors", lambda *arguments: pytest.fail("nothing may be written"))
    with pytest.raises(ModelError, match="cache .560,000,000 bytes are needed, and 1,000 are free.* DISAGG_CACHE"):
        weights.convert_smollm2()
    assert list(cache.iterdir()) == []


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    Exception("No space left on device (os error 28)"),
]


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("at", ["write", "rename"])
def test_a_disk_that_fills_up_leaves_nothing_that_is_trusted(at, error, cache, monkeypatch):
    def write(gguf, folder, say):
        (folder / "model.safetensors").write_bytes(b"half")
        if at == "write":
            raise error
        (folder / "receipt.json").write_text("{}")

    def rename(path, target):
        raise error

    monkeypatch.setattr(weights, "write_safetensors", write)
    monkeypatch.setattr(type(cache), "rename", rename)
    with pytest.raises(ModelError, match="can't be written in .*cache .*(No space|quota).* DISAGG_CACHE"):
        weights.convert_smollm2()
    assert list(cache.iterdir()) == [] and not weights.smollm2_ready()


def test_another_process_may_finish_first(cache, monkeypatch):
    def write(gguf, folder, say):
        weights.smollm2_folder().mkdir()
        (weights.smollm2_folder() / "receipt.json").write_text("theirs")

    monkeypatch.setattr(weights, "write_safetensors", write)
    assert (weights.convert_smollm2() / "receipt.json").read_text() == "theirs"
