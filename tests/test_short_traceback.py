"""Errors of this package in IPython: the cell's own line and the message, and none of the package's frames."""

import subprocess
import sys

import pytest

CALLS = {
    "Config.preset('nothing')": "ConfigError",
    "simulate(Config.preset('staged'), [Request('words')])": "RequestError",
    "Run.load('no such file')": "FileError",
}


def in_ipython(cell: str, *before: str) -> str:
    code = f"from disagg import Config, Request, Run, simulate\n{cell}"
    words = [sys.executable, *(before or ("-m", "IPython", "--no-banner", "--colors=NoColor")), "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr


@pytest.mark.parametrize(("call", "name"), CALLS.items())
def test_a_cells_error_is_its_line_and_the_message(call, name):
    said = in_ipython(f"def own():\n    {call}\nown()")
    assert said.count(call) >= 1 and "own()" in said, "the cell's frames are there, and those of its functions"
    assert f"{name}: " in said.strip().splitlines()[-1]
    assert "disagg/" not in said and len(said.splitlines()) < 20


def test_other_errors_and_plain_python_keep_their_frames():
    assert "disagg/twin" in in_ipython("simulate(None, [])")
    assert "disagg/plan/config.py" in in_ipython("Config.preset('nothing')", "-W", "ignore")
