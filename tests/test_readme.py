"""README's Python runs: every block, from the top, in one namespace, with only these changes to it, for time."""

import dataclasses
import re
from pathlib import Path

import pytest

from disagg.show.validate import HELD_OUT

README = Path(__file__).parents[1] / "README.md"
#: What stands there → what is run in its place. Each must be found, so that none outlives its sentence.
SHORTER = {
    "poisson(200, per_s=2,": "poisson(64, per_s=2,",  # so many are simulated some hundred times by `tune`
    "calibration = calibrate(engine)": "calibration = calibrate(engine, limit_s=1)",
    "in validate(calibration, engine.model):": "in validate(calibration, engine.model, [held]):",
}
HELD = dataclasses.replace(HELD_OUT[2], count=2)  # of four workloads one, and little of it


def blocks(text: str) -> list[tuple[int, str]]:
    """(line, code) of each block of Python, outer fences only."""
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in found]


def shortened(text: str) -> str:
    for words, instead in SHORTER.items():
        assert text.count(words) == 1, f"README no longer says {words!r}: change SHORTER as well"
        text = text.replace(words, instead)
    return text


def run(text: str, names: dict):
    for line, code in blocks(text):
        exec(compile("\n" * line + code, "README.md", "exec"), names)


@pytest.mark.timeout(600)
def test_every_python_block_of_readme_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"held": HELD}
    run(shortened(README.read_text("utf-8")), names)
    out = capsys.readouterr().out
    assert names["run"].results[0].token_ids and "Live timeline of 2 requests" in out and "failed" in out


def test_a_block_that_does_not_run_is_named_by_its_line_and_a_new_one_is_run():
    """The control."""
    text = README.read_text("utf-8")
    assert len(blocks(text)) == text.count("\n```python\n")
    with pytest.raises(NameError) as caught:
        run("# A page\n\n```python\nx = 1\n```\n\n```sh\nls\n```\n```python\ny = x + 1\nz\n```\n", {})
    assert caught.traceback[-1].lineno == 11 and caught.traceback[-1].path.name == "README.md"
