"""Passes as graphs, on the CPU: what a graph reads, what it gives, what is refused. Captures need a GPU."""

import random
from types import SimpleNamespace

import pytest
import torch
from paged_kernel import PlainKernel

from disagg.plan.errors import EngineError
from disagg.run.attention.paged import tiles_of
from disagg.run.gpu import memory, prefill_graph
from disagg.run.gpu.prefill_graph import MOST_CHUNKS, MOST_LOGITS, PrefillGraphs, sizes
from disagg.run.kv_cache import KVCache
from disagg.run.model.batch import PrefillBatch, Segment
from disagg.run.model.model import PASS_STEP, load_model
from disagg.run.prefill_worker import PrefillStage


@pytest.fixture
def make(monkeypatch):
    """Graphs of passes up to so many tokens. A graph is captured by a run without a token, and replayed by running it
    again."""
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    model = load_model("tiny")

    def made(most=192):
        graphs = PrefillGraphs(model, KVCache(model.shape, 16, 16), PlainKernel(), most)

        def capture(size, pool):
            inputs = graphs._inputs.blank(size)
            logits = graphs._logits(inputs).clone()
            again = lambda: logits.copy_(graphs._logits(inputs))  # noqa: E731
            return prefill_graph.CapturedPass(type("Graph", (), {"replay": staticmethod(again)}), logits)

        monkeypatch.setattr(graphs, "_capture", capture)
        return graphs

    return made


@pytest.fixture
def graphs(make):
    made = make()
    made.prepare(lambda text: None)
    return made


def pass_of(tokens):
    return PrefillBatch(torch.zeros(tokens, dtype=torch.long), [Segment(0, tokens, range(16))], [0])


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
        logits = graphs.run(batch)
        assert torch.allclose(logits, expected, atol=1e-4)
        assert graphs.picked(len(segments))[0].tolist() == expected.argmax(-1).tolist()
        assert torch.allclose(plain.data, graphs.cache.data, atol=1e-5), "a token was stored elsewhere, or padding was"
        assert graphs._seen[0].all(), "a layer has no time"


@pytest.mark.parametrize("size", [16, 24])
def test_rows_slots_and_tiles_of_a_pass_are_those_of_its_segments(size):
    rng = random.Random(size)
    for count in (1, 2, 7, 40):
        segments = []
        for _ in range(count):
            start, tokens = rng.choice([0, rng.randrange(200)]), rng.choice([1, 63, 64, 65, rng.randrange(1, 300)])
            blocks = tuple(rng.sample(range(1000), -(-(start + tokens) // size) + rng.randrange(3)))
            segments.append(Segment(start, start + tokens, rng.choice([blocks, torch.tensor(blocks)])))
        batch = PrefillBatch(torch.zeros(sum(s.num_tokens for s in segments)), segments, range(0, count, 2))
        assert batch.places.tolist() == [place for s in segments for place in range(s.start, s.stop)]
        assert batch.slots(size).tolist() == [
            int(s.blocks[place // size]) * size + place % size for s in segments for place in range(s.start, s.stop)
        ]
        assert batch.last_rows == [rows[-1] for rows in batch.rows()[::2]]
        tiles = [
            (row, rows.start + first, min(64, len(rows) - first), segments[row].start + first)
            for row, rows in enumerate(batch.rows())
            for first in range(0, len(rows), 64)
        ]
        assert list(map(tuple, tiles_of(batch).tolist())) == sorted(tiles, key=lambda tile: -tile[3])


def test_what_has_no_graph_runs_without(graphs):
    segments = [Segment(0, 1, [index % 16]) for index in range(MOST_LOGITS + 1)]
    ids = torch.zeros(len(segments), dtype=torch.long)
    assert graphs.fits(PrefillBatch(ids[:-1], segments[:-1], range(MOST_LOGITS)))
    assert not graphs.fits(PrefillBatch(ids, segments, range(3))) and len(segments) > MOST_CHUNKS
    assert not graphs.fits(PrefillBatch(torch.zeros(193), [Segment(0, 193, range(13))], [0]))


def test_captures_stop_where_their_time_is_up_and_larger_graphs_take_over(make, monkeypatch):
    seconds, said = iter([0, 40, 61, 62, 63]), []
    monkeypatch.setattr(prefill_graph, "now_ns", lambda: next(seconds) * 10**9)
    graphs = make(256)
    graphs.prepare(said.append)
    assert said == ["capture of a prefill pass, 1 of 4", "capture of a prefill pass, 2 of 4"]
    assert list(graphs._captured) == [256, 192]
    assert graphs.fits(pass_of(100)) and len(graphs.run(pass_of(100))) == 1
    assert not graphs.fits(pass_of(95)), "more padding than tokens"
    assert graphs.fits(pass_of(193)) and not graphs.fits(pass_of(257))


def test_the_first_sizes_captured_lie_far_apart(make):
    graphs = make(1024)
    graphs.prepare(lambda text: None)
    assert list(graphs._captured)[:4] == [1024, 512, 256, 896] and sorted(graphs._captured) == sizes(1024)


@pytest.mark.parametrize("enough", [0, 1, 2])
def test_captures_leave_the_reserve(make, monkeypatch, enough):
    """Each is asked before and after; the one that leaves less is dropped."""
    free = iter([memory.RESERVE_BYTES] * (1 + 2 * enough) + [1000])
    monkeypatch.setattr(memory, "free_bytes", lambda device: next(free))
    graphs = make()
    if enough:
        graphs.prepare(lambda text: None)
    else:
        words = "Prefill runs without graphs: .* a pass of 192 tokens on cpu: 1,000 bytes are free.* Lower chunk_tokens"
        with pytest.warns(RuntimeWarning, match=words):
            graphs.prepare(lambda text: None)
    assert list(graphs._captured) == [192, 128][:enough]
    assert graphs.fits(pass_of(150)) == (enough > 0)
    graphs.close()
    assert not graphs._captured


def test_a_capture_out_of_memory_leaves_prefill_without_graphs(make, monkeypatch):
    graphs = make()

    def fails(size, pool):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(graphs, "_capture", fails)
    with pytest.warns(
        RuntimeWarning, match="without graphs: no room .* tried to allocate 2.00 GiB.* Lower chunk_tokens"
    ):
        graphs.prepare(lambda text: None)
    assert not graphs.fits(pass_of(1))


def test_probes_time_the_passes_that_will_run(graphs, monkeypatch):
    stage = PrefillStage(graphs.model, graphs.cache, graphs.kernel, None, None, 192, graphs)
    ran, run = [], graphs.run
    monkeypatch.setattr(graphs, "run", lambda batch: ran.append(len(batch.tokens)) or run(batch))
    assert [tokens for tokens, ns in stage.probe() if ns > 0] == [64, 192] and ran == [64, 64, 192, 192]


def test_a_hand_off_that_cannot_be_prepared_leaves_its_passes_without_graphs(make):
    def refuses(*given):
        raise EngineError("the driver's cuMemcpy2DAsync failed with CUDA_ERROR_NOT_SUPPORTED")

    graphs = make(64)
    graphs.hand_off = SimpleNamespace(prepare=refuses)
    with pytest.warns(RuntimeWarning, match="run without graphs: the driver's cuMemcpy2DAsync"):
        graphs.prepare(lambda text: None)
    assert graphs.hand_off is None and graphs._captured
