"""Rows on the widgets: what tests/browser measures in a real Chromium, with its bars."""

import json
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import disagg
from benchmarks.common import Say
from benchmarks.explorer import NoBrowser, chromium
from disagg.plan.errors import FileError
from disagg.show.report import Failed, LeftOut, Row

CHECKOUT = Path(disagg.__file__).parents[1]
ON_THE_SITE = "test_explorer.py::test_a_slider_of_the_site_redraws_while_it_moves"
FILES = ("test_figures.py", "test_instrument.py", ON_THE_SITE)  # of tests/browser
#: Unit and bar of a row, by its name or by the name before the bracket; the second is an upper one, but for FLOORS.
BARS: dict[str, tuple[str, float]] = {
    "slider_ms[canvas] p50": ("ms", 80), "slider_ms[canvas] p95": ("ms", 200),
    "slider_ms[pictures] p50": ("ms", 350), "slider_ms[pictures] p95": ("ms", 600),
    "slider_ms[site] p50": ("ms", 200), "slider_ms[site] p95": ("ms", 500),
    "flow_fps": ("/s", 50), "flow_agrees": ("%", 100), "live_itl": ("×", 1.05), "first_contact_s": ("s", 15),
}  # fmt: skip
FLOORS = ("flow_fps", "flow_agrees", "controls")


def rows(say: Say, command: Callable[..., CompletedProcess], only: str = "") -> Iterator[Row | LeftOut]:
    """One run of the browser tests by `command`; `only` as pytest's -k. A test that fails is a failed row."""
    try:
        with chromium("the rows of widgets"):
            pass
    except NoBrowser as error:
        yield LeftOut("widgets", str(error))
        return
    say("the widgets in Chromium, minutes")
    found = list(of_report(_tested(command, only)))
    yield from sorted(found, key=lambda row: row.name)


def _tested(command: Callable[..., CompletedProcess], only: str) -> ET.Element:
    """What pytest reports of the tests."""
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.xml"
        files = [CHECKOUT / "tests" / "browser" / name for name in FILES]
        done = command(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junit-xml={report}",
                       *(["-k", only] if only else []), *files, folder=CHECKOUT, limit_s=3600)  # fmt: skip
        if not report.exists():
            raise FileError(f"the browser tests did not run: {(done.stdout + done.stderr)[-600:]}")
        return ET.parse(report).getroot()


def of_report(report: ET.Element) -> Iterator[Row | LeftOut]:
    """Rows of what tests measured, and of tests that were left out or failed, with the reason."""
    for case in report.iter("testcase"):
        for measured in case.iter("property"):
            yield row(measured.attrib["name"], **json.loads(measured.attrib["value"]))
        for kind, outcome in (("failure", Failed), ("error", Failed), ("skipped", LeftOut)):
            for found in case.iter(kind):
                reason = found.attrib.get("message", "") or kind
                yield outcome(case.attrib["name"], reason.splitlines()[0][:300])


def row(name: str, value: float, n: int, note: str, bar: float | None) -> Row:
    unit, known = BARS.get(name) or BARS.get(name.partition("[")[0]) or ("", bar)
    return Row(name, value, unit, known, n, note, at_most=not name.startswith(FLOORS))
