"""What `python -m benchmarks notebooks` makes of stamps and of the browser's report; measuring itself is not tested."""

import json
import xml.etree.ElementTree as ET

import nbformat
import pytest

from benchmarks.robustness import notebooks
from benchmarks.robustness.notebook_browser import of_report
from disagg.plan.errors import ConfigError
from disagg.show.report import Failed, LeftOut

MEASURED = json.dumps({"value": 81.0, "n": 40, "note": "six", "bar": None})
CONTROLS = json.dumps({"value": 4, "n": 8, "note": "", "bar": 5})
REPORT = ET.fromstring(
    f"""<testsuites><testsuite>
    <testcase name="a"><properties><property name="slider_ms[canvas] p50" value='{MEASURED}'/></properties></testcase>
    <testcase name="b"><properties><property name="controls[02]" value='{CONTROLS}'/></properties></testcase>
    <testcase name="c"><failure message="AssertionError: no picture&#10;more">where</failure></testcase>
    <testcase name="d"><skipped message="live_itl[03]: nothing to serve"/></testcase>
    </testsuite></testsuites>"""
)


def test_what_the_browser_measured_becomes_rows_with_bars_and_a_failed_test_a_failed_row():
    slider, controls, failed, left_out = of_report(REPORT)
    assert (slider.met, slider.unit, slider.bar_text, slider.n) == (False, "ms", "≤ 80", 40)
    assert (controls.met, controls.bar_text) == (False, "≥ 5")
    assert type(failed) is Failed and (failed.name, failed.reason) == ("c", "AssertionError: no picture")
    assert type(left_out) is LeftOut and left_out.reason == "live_itl[03]: nothing to serve"


def test_seconds_are_from_the_first_cells_start_to_the_last_ones_end():
    cells = [nbformat.v4.new_code_cell("1") for _ in range(3)]
    cells[0].metadata.execution = {"iopub.execute_input": "2026-01-01T10:00:59.500000Z"}
    cells[2].metadata.execution = {"shell.execute_reply": "2026-01-01T10:01:02.000000Z"}
    assert notebooks.cells_s(cells) == 2.5


def test_an_unknown_part_is_refused_in_words():
    with pytest.raises(ConfigError, match="--only words: no such row; rows: form, seconds, mine, green, bite, browser"):
        next(notebooks.suite(print, "words"))
