"""Prefill in pieces, on the CPU: where a capture is cut, what a replay is fed, what is refused. Bytes need a GPU."""

import pytest
import torch
from paged_kernel import PlainKernel

from disagg.plan.errors import EngineError
from disagg.run.gpu import memory, prefill_graph
from disagg.run.gpu.prefill_graph import MOST_LOGITS, PrefillGraphs, sizes
from disagg.run.kv_cache import KVCache
from disagg.run.model.batch import PrefillBatch, Segment
from disagg.run.model.model import PASS_STEP, load_model


class FakeGraph:
    """Remembers what was done with it, in the order of all of them."""

    done: list = []
    made = 0

    def __init__(self):
        FakeGraph.made += 1
        self.number = FakeGraph.made

    def capture_begin(self, pool, capture_error_mode):
        FakeGraph.done.append(("begin", self.number))

    def capture_end(self):
        FakeGraph.done.append(("end", self.number))

    def replay(self):
        FakeGraph.done.append(("replay", self.number))


@pytest.fixture
def graphs(monkeypatch):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(prefill_graph, "unowned", lambda tensor: tensor)
    model = load_model("tiny")
    made = PrefillGraphs(model, KVCache(model.shape, 16, 16), PlainKernel(), 192)
    made.prepare(lambda text: None)
    FakeGraph.done = []
    return made


def test_sizes_rise_by_a_quarter_at_most():
    assert sizes(192) == [64, 128, 192] and sizes(PASS_STEP) == [PASS_STEP] and sizes(40) == [40]
    found = sizes(16_384)
    assert found[-1] == 16_384 and len(found) < 30
    assert all(b - a <= max(PASS_STEP, a // 4) for a, b in zip(found, found[1:], strict=False))


def test_a_capture_is_cut_at_every_layer(graphs):
    for size, pieces in graphs._pieces.items():
        assert len(pieces.graphs) == graphs.model.layers + 1
        assert [cut.layer for cut in pieces.cuts] == list(range(graphs.model.layers))
        assert all(len(cut.query) == len(cut.key) == len(cut.out) == size for cut in pieces.cuts)
        assert len(pieces.logits) == MOST_LOGITS


def test_a_layer_attends_and_is_handed_off_between_two_graphs(graphs):
    batch = PrefillBatch(torch.arange(70), [Segment(0, 70, range(5))], [0])
    batch.on_layer = lambda layer, key, value: FakeGraph.done.append(("layer", layer, len(key)))
    graphs.run(batch)
    numbers = [graph.number for graph in graphs._pieces[128].graphs]
    expected = [("replay", numbers[0])]
    for layer, number in enumerate(numbers[1:]):
        expected += [("layer", layer, 70), ("replay", number)]
    assert FakeGraph.done == expected


def test_nothing_of_the_pass_before_is_left_in_the_padding(graphs):
    graphs.run(PrefillBatch(torch.full((180,), 7), [Segment(0, 100, range(7)), Segment(0, 80, range(7, 12))], [0, 1]))
    assert graphs._wanted[:2].tolist() == [99, 179]
    graphs.run(PrefillBatch(torch.full((10,), 3), [Segment(0, 10, [1])], [0]))
    assert graphs._wanted.tolist() == [9] + [0] * (MOST_LOGITS - 1), "rows beyond the pass would be read"
    assert graphs._ids[:64].tolist() == [3] * 10 + [0] * 54 and graphs._places[:12].tolist() == [*range(10), 0, 0]


def test_what_has_no_graph_runs_without(graphs):
    segments = [Segment(0, 1, [index % 16]) for index in range(MOST_LOGITS + 1)]
    ids = torch.zeros(len(segments), dtype=torch.long)
    assert graphs.fits(PrefillBatch(ids, segments, range(MOST_LOGITS)))
    assert not graphs.fits(PrefillBatch(ids, segments, range(MOST_LOGITS + 1)))
    assert not graphs.fits(PrefillBatch(torch.zeros(193), [Segment(0, 193, range(13))], [0]))


def test_memory_that_a_capture_must_leave_is_named(graphs, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    with pytest.raises(EngineError, match="a pass of 192 tokens on cpu: 1,000 bytes are free.* Lower chunk_tokens"):
        graphs.prepare(lambda text: None)
    graphs.close()
    assert not graphs._pieces and not graphs._staged
