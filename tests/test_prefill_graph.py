"""Passes as graphs, on the CPU: what a graph reads, what it gives, what is refused. Captures need a GPU."""

import pytest
import torch
from paged_kernel import PlainKernel

from disagg.plan.errors import EngineError
from disagg.run.gpu import memory, prefill_graph
from disagg.run.gpu.prefill_graph import MOST_CHUNKS, MOST_LOGITS, PrefillGraphs, sizes
from disagg.run.kv_cache import KVCache
from disagg.run.model.batch import PrefillBatch, Segment
from disagg.run.model.model import PASS_STEP, load_model


@pytest.fixture
def graphs(monkeypatch):
    """A graph is captured by a run without a token, and replayed by running it again."""
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    model = load_model("tiny")
    made = PrefillGraphs(model, KVCache(model.shape, 16, 16), PlainKernel(), 192)

    def capture(size, pool):
        inputs = made._inputs.blank(size)
        logits = made._logits(inputs).clone()
        again = lambda: logits.copy_(made._logits(inputs))  # noqa: E731
        return prefill_graph.Captured(type("Graph", (), {"replay": staticmethod(again)}), logits)

    monkeypatch.setattr(made, "_capture", capture)
    made.prepare(lambda text: None)
    return made


def test_sizes_rise_by_a_quarter_at_most():
    assert sizes(192) == [64, 128, 192] and sizes(PASS_STEP) == [PASS_STEP] and sizes(40) == [40]
    found = sizes(16_384)
    assert found[-1] == 16_384 and len(found) < 30
    assert all(b - a <= max(PASS_STEP, a // 4) for a, b in zip(found, found[1:], strict=False))


def test_a_graph_gives_what_the_pass_gives_and_nothing_of_an_earlier_one_is_left(graphs):
    model, plain = graphs.model, KVCache(graphs.model.shape, 16, 16)
    passes = [
        [Segment(0, 100, range(7)), Segment(0, 80, range(7, 12))],
        [Segment(0, 10, [12])],
        [Segment(10, 40, [12, 13, 14]), Segment(0, 1, [15])],  # a chunk: its prompt lies in the cache
        [Segment(40, 41, [12, 13, 14])],
    ]
    torch.manual_seed(7)
    for segments in passes:
        ids = torch.randint(0, model.vocab_size, (sum(segment.num_tokens for segment in segments),))
        batch = PrefillBatch(ids, segments, range(len(segments)))
        assert graphs.fits(batch)
        expected = model.prefill(plain, batch, PlainKernel())
        logits, leaves = graphs.run(batch)
        assert not leaves and torch.allclose(logits, expected, atol=1e-4)
        assert graphs.picked(len(segments))[0].tolist() == expected.argmax(-1).tolist()
        assert torch.allclose(plain.data, graphs.cache.data, atol=1e-5), "a token was stored elsewhere, or padding was"
        assert graphs._seen[0].all(), "a layer has no time"


def test_what_has_no_graph_runs_without(graphs):
    segments = [Segment(0, 1, [index % 16]) for index in range(MOST_LOGITS + 1)]
    ids = torch.zeros(len(segments), dtype=torch.long)
    assert graphs.fits(PrefillBatch(ids[:-1], segments[:-1], range(MOST_LOGITS)))
    assert not graphs.fits(PrefillBatch(ids, segments, range(3))) and len(segments) > MOST_CHUNKS
    assert not graphs.fits(PrefillBatch(torch.zeros(193), [Segment(0, 193, range(13))], [0]))


def test_memory_that_a_capture_must_leave_is_named(graphs, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    with pytest.raises(EngineError, match="a pass of 192 tokens on cpu: 1,000 bytes are free.* Lower chunk_tokens"):
        graphs.prepare(lambda text: None)
    graphs.close()
    assert not graphs._captured
