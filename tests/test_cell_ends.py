"""What a cell shows that ends in a run, a result, a receipt, an engine: short, without addresses, and a picture."""

import re

import pytest
from engine_tools import lengths, opened, prompt_of, small
from IPython.core.formatters import DisplayFormatter

from disagg import Config, Request, simulate
from disagg.show.plots.summaries import sentence

ADDRESS = re.compile(r"0x[0-9a-f]+|object at")


def shown(value) -> dict[str, str]:
    return DisplayFormatter().format(value)[0]


@pytest.fixture(scope="module")
def run():
    return simulate(Config.preset("staged"), [Request(prompt_of(90), max_new_tokens=8) for _ in range(3)])


def test_a_run_shows_its_sentence_its_timeline_and_where_time_went(run):
    data = shown(run)
    assert sentence(run) in data["text/html"]
    alts = re.findall(r'<img class="picture" alt="([^"]+)"', data["text/html"])
    assert [alt.split(",")[0] for alt in alts] == ["Timeline", "Where the milliseconds went"]
    assert data["text/plain"] == (
        "Run: 3 requests (3 length), 24 new tokens; Timeline of 196 spans on prefill 0, down 0, up 0, decode 0"
    )


def test_results_and_timelines_are_one_line_each(run):
    assert repr(run.results[1]) == "Request 1: 8 new tokens, length"
    assert repr(run.results) == f"[{', '.join(map(repr, run.results))}]"
    assert len(shown(run.timeline)["text/plain"]) < 100


def test_a_receipt_is_a_table(run):
    lines = repr(run.results[0].receipt).splitlines()
    assert lines[0].startswith("request 0: ") and lines[1].split()[:2] == ["work", "prefill"]
    assert shown(run.results[0].receipt)["text/plain"] == str(run.results[0].receipt)


def test_an_engine_its_handles_and_unrecorded_runs_have_words():
    with opened(small("staged")) as engine:
        assert repr(engine) == "Engine of tiny on cpu and cpu: open"
        handle = engine.submit(lengths((20, 3))[0])
        handle.result()
        assert re.fullmatch(r"Request 0: 3 new tokens, length(, '.*')?", repr(handle), re.DOTALL)
        run = engine.serve(lengths((20, 3)), record=False)
        assert shown(run)["text/html"].count("<img") == 0 and not ADDRESS.search(repr(run))
    assert repr(engine).endswith(": closed")
    with opened(small("colocated")) as engine:
        assert repr(engine) == "Engine of tiny on cpu: open"
