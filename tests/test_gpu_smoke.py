"""The smoke of GPUs runs here on cores, and says what failed."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import gpu_smoke
import pytest
import torch

from disagg.plan.config import PRESETS

SCRIPT = Path(gpu_smoke.__file__)


def test_it_is_green_on_cores_and_asks_every_preset(tmp_path):
    """From any folder."""
    command = [sys.executable, str(SCRIPT), "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, last = done.stdout.splitlines()
    assert last.startswith("gpu-smoke: green (")
    for preset in PRESETS:
        assert any(line.startswith("ok") and line.endswith(f"  preset {preset}") for line in lines)


@pytest.mark.parametrize("only, asked", [("preset colocated", 2), ("a cancel", 1), ("no such check", 0)])
def test_some_checks_can_be_asked_alone(monkeypatch, capsys, only, asked):
    monkeypatch.setattr(gpu_smoke.faulthandler, "dump_traceback_later", lambda *given, **options: None)
    assert gpu_smoke.main(["--device", "cpu", "--only", only]) == int(asked == 0)
    lines = capsys.readouterr().out.splitlines()
    assert sum(only in line for line in lines) == asked and f"({asked} checks" in lines[-1]


def test_what_fails_is_named_in_the_last_line_and_the_rest_is_asked_all_the_same(capsys):
    def fails():
        raise StopIteration

    found = [("one", lambda: None), ("two", fails), ("three", lambda: None), ("four", partial(fails))]
    assert gpu_smoke.run(iter(found), "a test") == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[-1].startswith("gpu-smoke: failed: two; four (4 checks")
    assert gpu_smoke.run(iter(()), "a test") == 1, "nothing was checked"


def test_wrong_tokens_wrong_logits_and_stops_that_do_nothing_are_noticed(monkeypatch):
    """Each check can fail: the engine loses a block of each hand-off, nothing is spilled, nothing is interrupted."""
    on_cores = ("cpu", "cpu")
    with monkeypatch.context() as patch:
        patch.setattr(gpu_smoke.Engine, "interrupt", lambda self: None)
        patch.setattr(gpu_smoke, "LONG", 8)
        with pytest.raises(AssertionError, match="nobody interrupted it"):
            gpu_smoke.interrupts(on_cores)
    with monkeypatch.context() as patch:
        patch.setattr(gpu_smoke, "opened", partial(spacious, gpu_smoke.opened))
        with pytest.raises(AssertionError, match="nothing was spilled"):
            gpu_smoke.spills(on_cores)
    monkeypatch.setattr("disagg.run.kv_cache.KVCache.write_blocks", lambda *args: None)
    with pytest.raises(AssertionError, match="below the reference's best"):
        gpu_smoke.serves("staged", on_cores, verify_kv=False)
    with pytest.raises(AssertionError, match="logits are off by"):
        gpu_smoke.half("staged", ("cpu", "cpu"), "tiny")


def spacious(opened, preset, devices, **changes):
    return opened(preset, devices, **{**changes, "decode_blocks": 64})


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_smoke.main([]) == 1 and "torch finds no CUDA device here" in capsys.readouterr().out
