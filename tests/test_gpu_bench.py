"""The GPU suite of the bench, in small sizes on a CPU: every group runs, alone too, and figures come from runs."""

import functools
import json
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import nanovllm, peers
from benchmarks.fixed_works import work_a, work_b
from benchmarks.gpu import right, streaming, suite
from benchmarks.gpu.fixture import Stand
from benchmarks.gpu.host_time import HostTime
from benchmarks.parity import drop_one_block
from benchmarks.suites import app
from disagg.monitor.monitor import Monitor
from disagg.plan.blocks import BlockPool
from disagg.plan.config import PRESETS
from disagg.plan.errors import ConfigError, EngineError
from disagg.plan.events import Cancel
from disagg.plan.request import Request
from disagg.run import prefill_worker
from disagg.run.clock import now_ns
from disagg.run.engine import Engine
from disagg.run.gpu.device import settle
from disagg.run.handle import Handle
from disagg.show.report import Failed, LeftOut, Row, shortfalls
from disagg.trace.law import Law
from disagg.trace.results import Result
from disagg.trace.spans import Span

on_cpu = pytest.mark.skipif(
    torch.cuda.is_available(), reason="on a GPU the rows take minutes; `bench` itself runs them"
)


@functools.cache
def rows_of(only: str) -> dict[str, Row]:
    found = list(suite.one(lambda text: None, "tiny", only))
    assert not [row for row in found if isinstance(row, LeftOut)], found
    return {row.name: row for row in found}


@on_cpu
@pytest.mark.parametrize("group", ["steps", "prefill", "law", "split", "order", "dial", "right", "paged", "generate"])
def test_a_group_runs_alone_and_brings_the_ceilings(group):
    rows = rows_of(group)
    assert {"ceiling_copy", "ceiling_matmul", "ceiling_pinned[down]", "ceiling_pinned[up]"} < rows.keys()
    for name in suite.ONE_GPU[group].names:
        assert any(row.partition("[")[0] == name for row in rows), f"{name} is promised and missing"


@on_cpu
def test_gaps_beside_hand_offs_are_rows_or_say_that_none_was_seen():
    rows = [row for row in suite.one(lambda text: None, "tiny", "gaps") if row.name.startswith("decode_gap_p99")]
    assert [row.name for row in rows] == [f"decode_gap_p99[{route}]" for route in ("bulk", "direct", "staged")]
    assert all(row.value > 0 if isinstance(row, Row) else "residents" in row.reason for row in rows)


@on_cpu
def test_steps_count_the_bytes_they_read():
    rows = rows_of("step_over_floor")
    assert rows["step_over_floor[1]"].bar == 1.28 and rows["gap_over_graph[2]"].bar == 1.05
    assert rows["step_over_floor[1]"].value > 1 and "mean context 12" in rows["step_over_floor[1]"].note


@on_cpu
def test_host_time_of_a_pass_ends_before_the_pass():
    rows = rows_of("prefill")
    for tokens in (32, 256):
        before, lanes = rows[f"host_us_pass[{tokens}]"], rows[f"host_us_layer[{tokens}]"]
        assert (before.bar, lanes.bar) == (400, 5) and before.n == lanes.n == 2 and lanes.value > 0
        assert 0 < before.value < 1e3 * rows[f"prefill_ms[{tokens}]"].value


def test_host_time_of_which_nothing_was_seen_is_left_out():
    executor = SimpleNamespace(transfers=SimpleNamespace(lanes=()))
    engine = SimpleNamespace(executor=executor, model=SimpleNamespace(layers=2))
    host = HostTime(engine)
    with host.watched():
        prefill_worker.settle(torch.device("cpu"))  # of another thread
    host.add(Span("prefill", "prefill 0", 0, now_ns(), (1,)), host.lanes_ns())
    assert [type(row) for row in host.rows(64)] == [LeftOut, LeftOut] and prefill_worker.settle is settle


@on_cpu
def test_the_command_writes_what_it_could_not_measure(tmp_path):
    file = tmp_path / "rows.json"
    arguments = ["gpu", "--shape", "tiny", "--only", "dynamic_over_nanovllm", "--json", str(file)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(file.read_text())
    assert "Qwen3 alone" in found["left_out"]["dynamic_over_nanovllm"]
    assert not [row for row in found["rows"] if "nanovllm" in row["name"]]


def test_a_group_that_fails_leaves_the_others_standing(monkeypatch, capsys):
    def fails(stand):
        yield Row("first", 1.0)
        raise ValueError("no such thing")

    monkeypatch.setitem(suite.ONE_GPU, "steps", suite.BenchGroup(("step_over_floor",), fails))
    last = suite.BenchGroup(("law_error_points",), lambda stand: iter([Row("last", 2.0)]))
    monkeypatch.setitem(suite.ONE_GPU, "law", last)
    rows = list(suite.one(lambda text: None, "tiny", "steps,law"))
    assert [row.name for row in rows[-3:]] == ["first", "steps", "last"]
    assert "no such thing" in rows[-2].reason and "after 1 rows" in rows[-2].reason
    assert type(rows[-2]) is Failed and "failed: steps" in shortfalls(rows)
    assert "Traceback" in capsys.readouterr().err


def test_only_knows_rows_and_groups():
    assert list(suite.chosen(suite.ONE_GPU, "law_error_points[4],paged_over_full")) == ["law", "paged"]
    assert list(suite.chosen(suite.ONE_GPU, "ready")) == ["ready"]
    assert suite.chosen(suite.ONE_GPU, None) is suite.ONE_GPU
    with pytest.raises(ConfigError, match="no such row"):
        suite.chosen(suite.ONE_GPU, "step_over_flor")


@on_cpu
def test_a_large_shape_asks_for_a_gpu():
    with pytest.raises(ConfigError, match="needs a GPU"):
        Stand("llama3-8b", lambda text: None)


# ---- right before fast -----------------------------------------------------------------------------------------------


@on_cpu
def test_every_preset_is_right():
    rows = rows_of("right")
    for preset in PRESETS:
        parity, wrong = rows[f"gpu_parity_max_logit_diff[{preset}]"], rows[f"gpu_parity_wrong_tokens[{preset}]"]
        assert parity.met and wrong.met and parity.n == wrong.n == 8 * 24
        assert parity.value > 0, "two ways to compute agree in every bit: was one of them compared with itself?"
    assert "agree at source, ring and destination" in rows["gpu_parity_max_logit_diff[staged]"].note
    assert "nothing is handed off" in rows["gpu_parity_max_logit_diff[two_colocated]"].note
    assert all(rows[f"bf16_error_over_hf[{preset}]"].met for preset in right.ROUNDED)


@on_cpu
def test_cancelled_requests_leave_nothing():
    rows = rows_of("right")
    lost, leaked, wrong = (rows[f"cancel_{name}"] for name in ("lost", "leaked_blocks", "wrong"))
    assert (lost.value, leaked.value, wrong.value) == (0, 0, 0) and lost.n == 100 and wrong.n >= 24
    assert "0 anomalies" in lost.note and "running" in lost.note, "no request was cancelled while it decoded"


def damaged(verify_kv: bool):
    """Builds engines that lose a block of every hand-off on its way."""

    def build(config, model):
        engine = Engine(config.replace(verify_kv=verify_kv), model=model)
        drop_one_block(engine)
        return engine

    return build


@on_cpu
def test_a_lost_block_shows_in_each_of_the_rows(monkeypatch):
    monkeypatch.setattr(right, "Engine", damaged(verify_kv=False))
    monkeypatch.setattr(right, "PRESETS", ("colocated", "split", "streamed", "staged"))
    monkeypatch.setattr(right, "ROUNDED", ("colocated", "streamed", "paged"))
    rows = rows_of.__wrapped__("right")
    for name in ("gpu_parity_max_logit_diff", "gpu_parity_wrong_tokens", "bf16_error_over_hf"):
        found = [row for row in rows.values() if row.name.startswith(name)]
        assert len(found) >= 3 and all(row.met == ("[colocated]" in row.name) for row in found)
    assert rows["cancel_lost"].met and rows["cancel_leaked_blocks"].met and not rows["cancel_wrong"].met


@on_cpu
def test_checksums_find_a_lost_block_before_logits_do(monkeypatch, capsys):
    monkeypatch.setattr(right, "Engine", damaged(verify_kv=True))
    last = list(suite.one(lambda text: None, "tiny", "right"))[-1]
    assert last.name == "right" and "digest differs" in last.reason
    assert "Traceback" in capsys.readouterr().err


def astray(handle: Handle):
    """It ends two requests: its own, and the one before."""
    loop = handle._cancel.__self__._loop if handle._cancel else None
    for number in (handle.so_far.request, handle.so_far.request - 1) if loop else ():
        loop._inbox.put(Cancel(number))


@on_cpu
def test_blocks_that_stay_and_cancels_that_go_astray_are_counted(monkeypatch):
    """The engine's own detectors would stop it before anything is counted."""
    for name in ("hear", "moved", "obey", "settle", "watchdog", "drained"):
        monkeypatch.setattr(Monitor, name, lambda self, *what: None)
    release = BlockPool.release
    monkeypatch.setattr(BlockPool, "release", lambda pool, blocks, owner: release(pool, blocks[owner == 7 :], owner))
    monkeypatch.setattr(Handle, "cancel", astray)
    stand = Stand("tiny", lambda text: None)
    lost, leaked, _ = right.cancel_rows(stand, right.both_references(stand))
    assert lost.value > 0 and leaked.value > 0 and not lost.met and not leaked.met


def test_ends_and_tokens_that_nobody_asked_for():
    fed = Request([1, 2], 3, force_ids=[5, 6, 7])
    kept, doomed = right.Asked(fed, None, None), right.Asked(fed, None, 1)
    end = lambda reason, tokens: Result(0, 2, 0, tokens, finish_reason=reason)  # noqa: E731
    assert right.lost([kept, doomed, doomed], [end("length", []), end("length", []), end("cancelled", [])]) == 0
    assert right.lost([kept] * 3 + [doomed], [end(e, []) for e in ("cancelled", "failed", "", "")]) == 4
    assert right.told_right(kept, end("length", [5, 6, 7])) and right.told_right(doomed, end("cancelled", [5]))
    assert not right.told_right(kept, end("length", [5, 6])) and not right.told_right(doomed, end("cancelled", [6]))


def test_products_in_tf32_are_refused():
    right.check_products()
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(EngineError, match="TF32"):
            right.check_products()
    finally:
        torch.set_float32_matmul_precision("highest")


# ---- works, queues, files --------------------------------------------------------------------------------------------


def test_works_have_the_same_lengths_and_other_ids_every_round():
    for make in (work_a, work_b):
        first, second = make(1000, seed=1), make(1000, seed=2)
        assert [len(r.prompt) for r in first] == [len(r.prompt) for r in second]
        assert [r.max_new_tokens for r in first] == [r.max_new_tokens for r in second]
        assert all(a.prompt != b.prompt for a, b in zip(first, second, strict=True))
    assert len(first) == 256 and {len(r.prompt) for r in work_a(1000, 0)} == {128, 512, 1024}
    assert all(100 <= len(r.prompt) <= 1024 and 100 <= r.max_new_tokens <= 1024 for r in first)


def test_a_queue_before_generate_is_summed_up():
    answers = {1: peers.PeerAnswer(0.5, 2.0), 2: peers.PeerAnswer(1.0, 3.0)}
    requests = [Request([1], 4, 0.0), Request([1, 1], 4, 1.0), Request([1], 4, 9.0)]
    assert peers.queue_waits(requests, answers) == [0.5, 2.0, 0.5]


def test_the_dial_for_a_hidden_fraction_is_where_the_law_has_it():
    law = Law(32, 0.0015, (0.0, 0.0), 0.002, ring_slots=8)
    ratio = streaming.dial_for(0.6, law)
    found = Law(32, 0.0015, (ratio * 0.0015,) * 2, 0.002, ring_slots=8).hidden
    assert found == pytest.approx(0.6, abs=1e-3)
    assert streaming.dial_for(0.1, law) is None  # two hops overlap, so no dial hides as little


# ---- nano-vllm's harness, without nano-vllm --------------------------------------------------------------------------


class FakeEngine:
    """Two steps: a prefill of all tokens, then one decode step that ends everybody with `made` tokens each."""

    def __init__(self, made: int):
        self.made, self.asked, self.steps = made, [], 0

    def add_request(self, prompt, params):
        self.asked.append((prompt, params))

    def is_finished(self):
        return self.steps == 3

    def step(self):
        self.steps += 1
        ended = [(i, [0] * self.made) for i in range(len(self.asked))] if self.steps == 3 else []
        return ended, 7 if self.steps == 1 else -len(self.asked)


def harness(monkeypatch, made: int):
    params = SimpleNamespace(SamplingParams=lambda **fields: fields)
    monkeypatch.setattr(nanovllm, "_module", lambda name: params)
    peer = nanovllm.NanoVllm.__new__(nanovllm.NanoVllm)
    peer._engine = FakeEngine(made)
    return peer


def test_the_peer_counts_its_tokens_and_gaps(monkeypatch):
    served = harness(monkeypatch, made=3).serve([Request([1, 2], 3), Request([3], 3)])
    assert served.tokens_per_s > 0 and len(served.gaps_s) == 2
    with pytest.raises(EngineError, match="gave 4 new tokens where 6"):
        harness(monkeypatch, made=2).serve([Request([1, 2], 3), Request([3], 3)])


def test_the_peer_reads_the_folder_that_is_written_for_it(tmp_path):
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.for_model("qwen3", hidden_size=64, num_hidden_layers=2, vocab_size=99)
    nanovllm.write_folder(tmp_path, SimpleNamespace(config=config, shape=SimpleNamespace(dtype=torch.bfloat16)))
    assert AutoConfig.from_pretrained(tmp_path).dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(tmp_path, use_fast=True).eos_token_id == 1


@on_cpu
def test_the_peer_says_why_it_is_missing():
    qwen = SimpleNamespace(config=SimpleNamespace(model_type="qwen3"), name="random-qwen3-8b")
    assert "needs a GPU" in nanovllm.reason_missing(qwen)
