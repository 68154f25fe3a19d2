"""The suite of two GPUs, in small sizes on two CPU workers: every group runs, alone too."""

import json

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.gpu import pair, suite
from benchmarks.gpu.fixture import Stand
from benchmarks.suites import app
from disagg.plan.config import PRESETS
from disagg.plan.errors import ConfigError
from disagg.show.report import LeftOut, Row

on_gpus = "on GPUs the rows take minutes; `bench` itself runs them"
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason=on_gpus)

TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2024-01-01 00:00:{second:02}.5000000,{20 + second},{2 + second % 3}\n" for second in range(8)
)


def rows_of(only: str, traces=()) -> dict[str, Row]:
    found = list(suite.two(lambda text: None, "tiny", only, traces))
    assert not [row for row in found if isinstance(row, LeftOut)], found
    return {row.name: row for row in found}


@pytest.mark.parametrize("group", ["link", "law", "peer", "generate"])
def test_a_group_runs_alone_and_brings_the_ceilings(group):
    rows = rows_of(group)
    assert {"ceiling_copy", "ceiling_matmul", "ceiling_pinned[down]", "ceiling_pinned[up]"} < rows.keys()
    for name in suite.two_gpus([])[group].names:
        found = [row for row in rows.values() if row.name.partition("[")[0] == name]
        least = -100 if "slows" in name else 0  # beside noise a pass with a hand-off may be the faster one
        assert found and all(row.value >= least for row in found), f"{name} is promised and missing"


def test_gaps_beside_prefills_are_rows_or_say_that_none_was_seen():
    rows = [row for row in suite.two(lambda text: None, "tiny", "gaps") if row.name.startswith("pair_gap")]
    assert [row.name for row in rows] == ["pair_gap_p99_over_alone", "pair_gap_p99_over_alone[handed off]"]
    assert all(row.value > 0 if isinstance(row, Row) else "residents" in row.reason for row in rows)


def test_every_preset_is_right_with_and_without_peer_access():
    rows = rows_of("right")
    for name in (*PRESETS, *(f"{preset},no peer access" for preset in pair.HANDED_OFF)):
        assert rows[f"gpu_parity_max_logit_diff[{name}]"].met and rows[f"gpu_parity_wrong_tokens[{name}]"].met


def test_the_command_serves_a_trace_on_both_arrangements(tmp_path):
    file, trace = tmp_path / "rows.json", tmp_path / "AzureLLMInferenceTrace_small.csv"
    trace.write_text(TRACE)
    arguments = ["two-gpu", "--shape", "tiny", "--only", "traces", "--json", str(file)]
    result = CliRunner().invoke(app, [*arguments, "--trace", str(trace)])
    assert isinstance(result.exception, SystemExit | None), result.output  # small sizes may miss bars of a GPU
    found = json.loads(file.read_text())
    names = [row["name"] for row in found["rows"] if row["name"].startswith("pair_goodput")]
    assert names == [f"pair_goodput_over_two_colocated[small,{load:g}]" for load in (0.3, 0.6, 0.9)]
    assert not found.keys() & {"left_out", "failed"}


def test_what_is_missing_is_reported():
    rows = list(suite.two(lambda text: None, "tiny", "traces,nanovllm"))
    left = {row.name: row.reason for row in rows if isinstance(row, LeftOut)}
    assert "Qwen3 alone" in left["pair_over_nanovllm"] and "no --trace was given" in left["pair_over_two_colocated"]


def test_one_gpu_is_not_two(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="needs two GPUs, and torch finds one"):
        Stand("tiny", lambda text: None, pair=True)
