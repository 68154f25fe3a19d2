"""The report's table: every number tried twice and filled three ways, and verdicts that follow from their data."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from benchmarks.report import elsewhere, here, table
from benchmarks.report.cell import AS_WRITTEN, ONE_SETTING, TARGETS, Cell, attention_of, is_share, reached, verdict
from benchmarks.suites import app
from disagg.plan.config import Config
from disagg.plan.errors import EngineError, FileError
from disagg.plan.request import Request
from disagg.run.engine import Engine
from disagg.show import recordings
from disagg.show.report import Failed
from disagg.trace.results import Run
from disagg.twin.simulate import simulate

KINDS = ("ran", "recorded", "twin")
ALL = {(claim, tried, kind) for claim in TARGETS for tried in (AS_WRITTEN, ONE_SETTING) for kind in KINDS}
SMALL = replace(here.ON_CPU[0], streamed=64, prompts=(64,), repeats=1, work_a=(3, (16, 32), 6)), (3, 16, 6)
DIALLED = 1.0, 0.5  # a layer's hop in its compute: the tiny model's law need not reach the report's shares

claims = st.sampled_from(list(TARGETS))
values = st.floats(0.01, 300)
rivals = st.dictionaries(st.sampled_from(["two_colocated", "colocated"]), values)
links = st.none() | st.floats(0.001, 100)


@pytest.fixture
def tiny(monkeypatch):
    small(monkeypatch)


def small(patch: pytest.MonkeyPatch) -> None:
    """The command with the tiny model, in sizes of a moment, on a link as slow as is said here."""
    dials = iter(DIALLED)
    patch.setattr(torch.cuda, "is_available", lambda: False)
    patch.setattr(here, "ON_CPU", SMALL)
    patch.setattr(here.streaming, "dial_for", lambda *given: next(dials))


def told(folder) -> tuple[dict, str, int]:
    """What the command wrote and printed, and its exit code."""
    file = folder / "report.json"
    found = CliRunner().invoke(app, ["report", "--shape", "tiny", "--json", str(file)])
    assert file.exists(), found.output
    return json.loads(file.read_text()), found.output, found.exit_code


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> tuple[dict, str, int]:
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        return told(tmp_path_factory.mktemp("report"))


def test_every_cell_is_filled_with_its_kind_and_the_json_has_them_all(served):
    written, printed, code = served
    cells = [Cell.of(row) for row in written["rows"]]
    assert code == 0 and "failed" not in written
    assert len(cells) == len(ALL) and {(cell.claim, cell.tried, cell.kind) for cell in cells} == ALL
    for row, cell in zip(written["rows"], cells, strict=True):
        assert row == json.loads(json.dumps(cell.as_json())) and row["verdict"] == cell.verdict
        assert cell.setting and cell.machine and cell.attention
    assert {cell.attention for cell in cells if cell.kind == "ran"} == {"PyTorch SDPA over gathered slots"}
    assert all("2 × NVIDIA L4" in cell.machine for cell in cells if cell.kind == "twin")
    assert all("; 2026-" in cell.machine for cell in cells if cell.kind == "recorded")
    lines = printed[printed.index("the report") :].splitlines()
    assert max(map(len, lines[:-1])) <= table.WIDTH  # the last names the file
    assert all(any(cell.verdict.partition(":")[0] in line for line in lines) for cell in cells)


def test_a_gain_stands_beside_both_rivals_and_an_overlap_beside_one_piece(served):
    for row in served[0]["rows"]:
        if row["kind"] != "recorded":
            wanted = {"split"} if is_share(row["claim"]) else {"two_colocated", "colocated"}
            assert row["rivals"].keys() == wanted, row["name"]


def test_one_setting_is_one_work_for_all_four_numbers(served):
    for kind in KINDS:
        rows = [row for row in served[0]["rows"] if (row["kind"], row["tried"]) == (kind, ONE_SETTING)]
        assert len({row["setting"].partition(";")[0] for row in rows}) == 1 and len({r["machine"] for r in rows}) == 1


def test_a_cell_that_cannot_be_filled_is_an_error_with_its_cause(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(recordings, "FOLDER", tmp_path)
    written, printed, code = told(tmp_path)
    assert code == 1 and "failed" in printed
    assert "gpu_staged_*.jsonl.gz is not in figures/data" in written["failed"]["recorded, overlap"]
    assert {row["kind"] for row in written["rows"]} == set(KINDS)  # the others stand


def test_a_share_that_no_link_gives_is_named_with_the_times(tiny, monkeypatch):
    monkeypatch.setattr(here.streaming, "dial_for", lambda share, law: None if share > 0.9 else 1.0)
    found = here.here(lambda text: None, "tiny")
    try:
        with pytest.raises(EngineError, match=r"no link gives overlap 96 % .* a tail of"):
            next(found.overlap())
    finally:
        found.stand.close()


def test_a_missed_number_fails_no_command(served):
    written, _, code = served
    assert code == 0
    assert any(row["verdict"].startswith("not reproduced") for row in written["rows"])


@given(claims, values, rivals, st.sampled_from(["", "baseline"]), links)
def test_a_verdict_follows_from_its_data(claim, value, rivals, over, link):
    if is_share(claim):
        value, rivals, over = value / 300, {name: gain / 300 for name, gain in rivals.items()}, ""
    words = verdict(claim, value, rivals, over, link)
    assert words.startswith("not reproduced: ") != reached(claim, value)
    if not reached(claim, value):
        return
    as_good = any(reached(claim, gain) for gain in rivals.values())
    fair = bool(rivals) and value / max(rivals.values()) >= TARGETS[claim]
    conditions = link is not None or (as_good if is_share(claim) else bool(over) and not fair)
    assert words == "reproduced" or words.startswith("reproduced under conditions: ")
    assert (words != "reproduced") == conditions
    assert ("a link held at" in words) == (link is not None)
    if not is_share(claim) and over and rivals and not fair:
        assert f"over {max(rivals, key=rivals.get)} it is" in words


@given(claims, values, rivals, links)
def test_a_cell_comes_back_from_json(claim, value, rivals, link):
    cell = Cell("a", value, "×", claim=claim, kind="twin", rivals=rivals, over="baseline", link_gb_s=link, note="n")
    assert Cell.of(json.loads(json.dumps(cell.as_json()))) == cell


def test_a_share_beside_the_report_s_says_what_the_law_gives():
    assert verdict("overlap 60 %", 0.68, {}, law=0.67).endswith("has 60.0 %, and the law 67.0 %")


def test_recorded_cells_are_what_the_recordings_say():
    found = {cell.claim: cell for cell in elsewhere.recorded_overlap()}
    runs = recordings.staged()
    assert found["overlap 60 %"].value == runs[4.0].overlap(0).hidden
    assert found["overlap 96 %"].value == runs[0.5].overlap(0).hidden
    assert all(cell.machine.startswith("NVIDIA H200") for cell in found.values())


def test_a_recording_names_the_attention_that_ran(tmp_path):
    with Engine(Config.preset("colocated", model="tiny", attention="plain")) as engine:
        engine.serve([Request([1, 2, 3], 2)]).save(tmp_path / "run.jsonl")
    assert Run.load(tmp_path / "run.jsonl").machine.endswith(", attention: plain attention over gathered slots")


@pytest.mark.parametrize(
    ("chunk", "named"), [(2, "flash-attn 2.8.3 (chunks) and own"), (8, "own; flash-attn 2.8.3 had")]
)
def test_flash_attn_is_named_where_a_chunk_was_read(chunk, named):
    run = simulate(Config.preset("colocated", block_size=2, chunk_tokens=chunk), [Request([1] * 6, 2)])
    run.machine = "one GPU, attention: flash-attn 2.8.3 (chunks) and own"
    assert attention_of(run).startswith(named)


def test_a_failed_part_has_a_row_in_the_table():
    lines = table.lines([Failed.of("ran, gains", FileError("no room for 3 blocks"))])
    assert any("FileError: no room for 3 blocks" in line for line in lines)
