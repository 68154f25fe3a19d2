"""Cells that build an engine are run again in IPython: the engines before are closed, and those in use are not."""

import subprocess
import sys

SHELL = """
import sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance(colors="NoColor")
for cell in sys.argv[1:]:
    shell.run_cell(cell, store_history=True).raise_error()
"""
START = """
from disagg import Config, Engine, Request
from disagg.run.machine.open_engines import OPEN
from disagg.show import panel
class Own: pass
kept, own, handles = [], [], []
def build(**changes):
    return Engine(Config.preset("streamed", model="tiny", **changes))
def end(name):
    print(name, len(OPEN))
    for one in list(OPEN):
        one.shut_and_wait(), one.end()
"""
BUILD = "engine = build()"
PARTS = {
    "history": [f"{BUILD}\nengine"] * 4,
    "widget": [f"{BUILD}\nview = panel(engine, [Request([5], 2)])"] * 4,
    "names": [BUILD, "other = build()", "third = build()"],
    "list": [f"{BUILD}\nkept.append(engine)\nengine"] * 4,
    "attribute": [f"{BUILD}\none = Own(); one.engine = engine; own.append(one)\nengine"] * 4,
    "busy": ["engine = build(link=50)\nhandles.append(engine.submit(Request([5] * 9, 4)))\nengine", *[BUILD] * 3],
    "nothing": [BUILD] * 4,
}
OPEN = {"history": 2, "widget": 2, "names": 3, "list": 4, "attribute": 4, "busy": 2, "nothing": 1}


def test_an_engine_that_only_the_history_or_a_widget_holds_is_closed_and_that_is_said():
    cells = [cell for name, part in PARTS.items() for cell in (*part, f"end({name!r})")]
    words = [sys.executable, "-c", SHELL, START, *cells]
    said = subprocess.run(words, capture_output=True, text=True, timeout=200, check=True).stdout.splitlines()
    parts, closed = {}, 0
    for line in said:
        closed += line.startswith("Closed an engine that no variable names any more; it held ")
        if line.split()[0] in PARTS:
            parts[line.split()[0]], closed = (int(line.split()[1]), closed), 0
    assert parts == {name: (left, 2 * (name in ("history", "widget"))) for name, left in OPEN.items()}
