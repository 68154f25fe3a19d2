"""A suite ends with 0 only where it measured, nothing failed and each bar is met; the last line says why not."""

import json
import math
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from disagg import cli
from disagg.cli import output
from disagg.show.report import Failed, LeftOut, Row

figures = st.sampled_from([0.0, 1.0, -1.0, math.inf, math.nan])
names = st.sampled_from(["step[1]", "gap", "wrong_tokens", "[bold]"])
measured = st.builds(Row, names, figures, bar=st.none() | figures, at_most=st.booleans())
missing = st.builds(LeftOut, names, st.just("no GPU")) | st.builds(Failed, names, st.just("Error"))
anything = st.lists(measured | missing)


def ended(rows, path=None) -> tuple[int, str]:
    """The exit code of a suite with these rows, and its last line."""
    code = 0
    with output.console.capture() as said:
        try:
            output.measure(lambda say: iter(rows), "a suite", path)
        except typer.Exit as exit_:
            code = exit_.exit_code
    return code, said.get().splitlines()[-1]


def beyond(row: Row) -> bool:
    return row.bar is not None and not (row.value <= row.bar if row.at_most else row.value >= row.bar)


@given(anything)
def test_a_suite_ends_well_only_where_it_measured_and_every_bar_is_met(rows):
    figures = [row for row in rows if isinstance(row, Row)]
    missed = [row.name for row in figures if beyond(row)]
    failed = [row.name for row in rows if isinstance(row, Failed)]
    code, last = ended(rows)
    assert code == bool(missed or failed or not figures)
    if code:
        assert all(name in last for name in missed + failed)
        assert ("nothing was measured" in last) == (not figures)


@pytest.mark.parametrize("rows", [[], [LeftOut("a", "none here")], [Row("a", 2, bar=1)], [Failed("a", "E")]])
def test_the_file_is_written_whatever_the_rows_say(tmp_path, rows):
    path = tmp_path / "rows.json"
    assert ended(rows, path)[0] == 1
    found = json.loads(path.read_text())
    assert len(found["rows"]) + len(found.get("left_out", ())) + len(found.get("failed", ())) == len(rows)


def test_no_command_sets_an_exit_code_by_another_way():
    sources = {file.name: file.read_text() for file in Path(cli.__file__).parent.glob("*.py")}
    exits = {name: text.count("typer.Exit(") for name, text in sources.items() if "typer.Exit(" in text}
    assert exits == {"main.py": 1, "output.py": 1}
