"""The pages' Python runs: every block of a page, from the top, in one namespace, with only these changes, for time."""

import dataclasses
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import suites
from disagg.cli import main
from disagg.show.validate import HELD_OUT

ROOT = Path(__file__).parents[1]
README, PYTHON, DEVICES = ROOT / "README.md", ROOT / "docs" / "python.md", ROOT / "docs" / "devices.md"
#: What stands there → what is run in its place. Each must be found, so that none outlives its sentence.
SHORTER = {
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
        assert text.count(words) == 1, f"the page no longer says {words!r}: change SHORTER as well"
        text = text.replace(words, instead)
    return text


def run(text: str, names: dict):
    for line, code in blocks(text):
        if "disagg.serve" in code and find_spec("uvicorn") is None:
            continue  # without the extra `serve`
        exec(compile("\n" * line + code, "README.md", "exec"), names)


@pytest.mark.timeout(600)
def test_every_python_block_of_the_page_on_python_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"held": HELD}
    run(shortened(PYTHON.read_text("utf-8")), names)
    out = capsys.readouterr().out
    assert names["run"].results[0].token_ids and "Live view of 2 requests" in out and "failed" in out


@pytest.mark.parametrize("page", [README, DEVICES], ids=["readme", "devices"])
def test_the_blocks_of_a_short_page_run(page):
    run(page.read_text("utf-8"), {})


def test_pages_with_python_are_these():
    pages = [path for path in (README, *(ROOT / "docs").glob("*.md")) if "\n```python\n" in path.read_text("utf-8")]
    assert sorted(pages) == sorted([README, PYTHON, DEVICES])


def test_the_readme_is_short_and_its_blocks_fit_a_narrow_page():
    text = README.read_text("utf-8")
    assert len(text.split()) <= 1800
    fenced = re.findall(r"^```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(fenced) == 3 and not [line for block in fenced for line in block.splitlines() if len(line) > 80]


def test_every_command_stands_on_its_page_and_what_pages_call_is_there():
    page = (ROOT / "docs" / "commands.md").read_text("utf-8")
    names = {"disagg": listed(main.app), "benchmarks": listed(suites.app)}
    for program, commands in names.items():
        assert commands == set(re.findall(rf"`python -m {program} ([a-z][a-z-]*)", page))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for path in (README, *(ROOT / "docs").glob("*.md")):
        assert set(re.findall(r"(?:^|`)make ([a-z-]+)", path.read_text("utf-8"), re.MULTILINE)) <= targets, path.name


def listed(app) -> set[str]:
    return {one.name or one.callback.__name__.replace("_", "-") for one in app.registered_commands if not one.hidden}


def test_every_link_to_a_file_leads_to_one():
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_file_that_the_architecture_names_is_there():
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    names = set(re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.\w+)`", text))
    assert len(names) > 40
    assert not [name for name in names if not (ROOT / name).exists() and not (ROOT / "disagg" / name).exists()]


def test_a_block_that_does_not_run_is_named_by_its_line_and_a_new_one_is_run():
    """The control."""
    text = README.read_text("utf-8")
    assert len(blocks(text)) == text.count("\n```python\n")
    with pytest.raises(NameError) as caught:
        run("# A page\n\n```python\nx = 1\n```\n\n```sh\nls\n```\n```python\ny = x + 1\nz\n```\n", {})
    assert caught.traceback[-1].lineno == 11 and caught.traceback[-1].path.name == "README.md"
