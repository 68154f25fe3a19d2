"""One GPU plays both devices: every preset answers there as the untouched model does on the CPU."""

import gc

import pytest
import torch
from engine_tools import check_run, lengths, prompt_of, small

from disagg import Config, Engine, Request
from disagg.plan.config import PRESETS
from disagg.run.attention import split_decode
from disagg.run.attention.choice import pick_kernel
from disagg.run.attention.gathered import DecodePlan, PrefillPlan, Workspace
from disagg.run.attention.interface import Options
from disagg.run.attention.paged import PagedDecode, PagedKernel, PagedPrefill
from disagg.run.gpu.prefill_graph import PrefillGraphs
from disagg.run.gpu.sm_split import describe, sm_count, split_gpu
from disagg.run.gpu.stream_copy import Route, copy_blocks
from disagg.run.kv_cache import KVCache, KVShape
from disagg.run.model.batch import DecodeBatch, PrefillBatch, Segment
from disagg.run.model.fused_decode import EVERY, FusedDecode, Own
from disagg.run.model.fused_trial import step_error
from disagg.run.model.model import load_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device that torch can use")

ON_ONE_GPU = dict(prefill_device="cuda:0", decode_device="cuda:0")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_answers_on_one_gpu(preset):
    requests = lengths((1, 9), (16, 12), (33, 1), (100, 8))
    with Engine(small(preset, **ON_ONE_GPU)) as engine:
        run = engine.serve(requests)
    check_run(run, requests)


@pytest.mark.parametrize("preset", ["streamed", "staged", "paged"])
def test_checksums_and_automatic_copies_on_one_gpu(preset):
    requests = lengths((16, 12), (33, 9), (100, 8))
    with Engine(small(preset, verify_kv=True, layers_per_copy=None, **ON_ONE_GPU)) as engine:
        run = engine.serve(requests)
    assert "copies timed to" in run.machine
    check_run(run, requests)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(
    "switch", [dict(pinned=False), dict(overlap=False), dict(pinned=False, overlap=False)], ids=str
)
@pytest.mark.parametrize("preset", ["streamed", "staged", "paged"])
def test_a_switch_of_the_hand_off_off_on_one_gpu(preset, switch, verify):
    requests = lengths((16, 12), (33, 9), (100, 8))
    with Engine(small(preset, verify_kv=verify, **switch, **ON_ONE_GPU)) as engine:
        assert all(slot.pinned == switch.get("pinned", True) for slot in engine.executor.transfers.ring)
        run = engine.serve(requests)
    check_run(run, requests)
    assert any(span.waits_ns for span in run.timeline.spans) == ("overlap" in switch)


@pytest.mark.parametrize("pinned", [True, False])
def test_what_a_gpu_spills_comes_back_the_same(pinned):
    requests = [Request(prompt_of(24, n), 48, ignore_eos=True) for n in range(4)]
    sizes = dict(block_size=16, chunk_tokens=256, decode_blocks=8, host_blocks=8, verify_kv=True)
    with Engine(small("paged", pinned=pinned, **sizes, **ON_ONE_GPU)) as engine:
        [host] = [cache for name, cache in engine.executor.caches.items() if name.role == "host"]
        assert host.data.is_pinned() == pinned
        run = engine.serve(requests)
    assert run.counts["spills"] >= 1
    check_run(run, requests)


@pytest.mark.parametrize("heads, kv_heads, head_dim", [(32, 8, 128), (14, 2, 64), (8, 8, 80), (20, 1, 128)])
@pytest.mark.parametrize(
    "contexts",
    [[0], [1, 15, 16, 17], [300, 31, 0, 256, 255, 511], [37 * n % 400 for n in range(150)],
     [8192], [600] * 8 + [8192], [900, 0, 0, 0], [63 * n % 4001 for n in range(64)]],
    ids=["first", "few", "edges", "many", "long", "long_one", "padding", "mixed"],
)  # fmt: skip
@pytest.mark.parametrize("sms", [32, 132])
def test_split_decode_attends_as_gathered_slots_do(monkeypatch, sms, heads, kv_heads, head_dim, contexts):
    monkeypatch.setattr(split_decode, "sm_count", lambda device: sms)  # decides how the tokens are cut
    device, rows, width, size = torch.device("cuda:0"), len(contexts), max(contexts) // 64 + 1, 64
    shape = KVShape(2, kv_heads, head_dim, torch.bfloat16)
    ours, plain = (KVCache(shape, rows * width + 1, size, device) for _ in range(2))
    torch.manual_seed(5)
    ours.data.normal_()
    tables = torch.randperm(rows * width).view(rows, width)
    for row, context in enumerate(contexts):  # what lies beyond a row must not be looked at
        ours.poison(tables[row, context // size + 1 :])
    plain.data.copy_(ours.data)
    lengths = torch.tensor(contexts)
    batch = DecodeBatch(torch.zeros(rows, dtype=torch.long), lengths, [(0, rows, tables)])
    exact = DecodePlan(batch, plain, Workspace("plain"))
    step = PagedDecode(ours, PagedKernel(), tables.int().to(device), lengths.int().to(device))
    for layer in (0, 1, 0):  # scratch is used again
        query = torch.randn(rows, kv_heads, heads // kv_heads, head_dim, dtype=torch.bfloat16, device=device)
        key, value = torch.randn(2, rows, kv_heads, head_dim, dtype=torch.bfloat16, device=device)
        found = step.run(layer, query, key, value, Options())
        expected = exact.run(layer, query, key, value, Options())
        off = (found.float() - expected.float()).flatten(1).norm(dim=1) / expected.float().flatten(1).norm(dim=1)
        assert float(off.max()) < 0.02, f"relative to a row's own size, which shrinks with its length: {off.tolist()}"
        assert torch.equal(ours.data.nan_to_num(7.0), plain.data.nan_to_num(7.0))


@pytest.mark.parametrize("heads, kv_heads, head_dim", [(32, 8, 128), (14, 2, 64), (8, 8, 80), (4, 1, 256)])
@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize(
    "chunks",
    [
        [(0, 1)],
        [(0, 63), (0, 64), (0, 65), (0, 1), (0, 300)],
        [(5, 6), (100, 400), (0, 70)],
        [(4099, 4100), (256, 900)],
    ],
    ids=str,
)
def test_packed_chunks_attend_as_gathered_slots_do(heads, kv_heads, head_dim, size, chunks):
    """Whole prompts, chunks whose prompts lie in the cache, and rows that decode."""
    torch.manual_seed(6)
    device, width = torch.device("cuda:0"), max(stop for _, stop in chunks) // size + 1
    shape = KVShape(1, kv_heads, head_dim, torch.bfloat16)
    ours, plain = (KVCache(shape, len(chunks) * width, size, device) for _ in range(2))
    tables = torch.randperm(len(chunks) * width).view(len(chunks), width)
    ours.data.normal_()
    plain.data.copy_(ours.data)
    segments = [Segment(start, stop, tables[row]) for row, (start, stop) in enumerate(chunks)]
    batch = PrefillBatch(torch.zeros(sum(s.num_tokens for s in segments), dtype=torch.long), segments)
    tokens = len(batch.tokens)
    query = torch.randn(tokens, kv_heads, heads // kv_heads, head_dim, dtype=torch.bfloat16, device=device)
    key, joined = torch.randn(2, tokens, 2 * kv_heads, head_dim, dtype=torch.bfloat16, device=device)
    key, value = key[:, :kv_heads].contiguous(), joined[:, kv_heads:]  # as views of a joined projection are
    found = PagedPrefill(batch, ours, PagedKernel()).run(0, query, key, value, Options())
    expected = PrefillPlan(batch, plain, Workspace("plain")).run(0, query, key, value, Options())
    assert torch.allclose(found.float(), expected.float(), atol=0.02, rtol=0.02)
    assert torch.equal(ours.data, plain.data)


# ---- prefill as graphs -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_in_16_bits():
    model = load_model("random-llama3-1b", dtype="bfloat16", device="cuda:0")
    if pick_kernel("auto", "cuda:0", model.shape, 32, 256, model.config) is None:
        pytest.skip("needs triton")
    return model


def test_graphs_of_a_pass_give_what_the_pass_gives(model_in_16_bits):
    model, device = model_in_16_bits, torch.device("cuda:0")
    kernel = PagedKernel()  # in both: flash-attn, which chunks have without a graph, rounds otherwise
    whole, kept = (KVCache(model.shape, 12, 256, device) for _ in range(2))
    graphs = PrefillGraphs(model, kept, kernel, 1024)
    with torch.cuda.stream(torch.cuda.Stream(device)):
        graphs.prepare(lambda text: None)
        torch.manual_seed(7)
        passes = [
            [Segment(0, 300, [0, 1]), Segment(0, 17, [2]), Segment(0, 64, [3])],
            [Segment(0, 256, [4, 5, 6])],
            [Segment(256, 700, [4, 5, 6]), Segment(0, 580, [7, 8, 9])],  # a chunk: its prompt lies in the cache
            [Segment(0, 1, [10])],
        ]
        for segments in passes:
            ids = torch.randint(0, model.vocab_size, (sum(segment.num_tokens for segment in segments),))
            batch = PrefillBatch(ids, segments, range(len(segments)))
            assert graphs.fits(batch)
            expected, found = model.prefill(whole, batch, kernel).float().clone(), graphs.run(batch)
            torch.cuda.synchronize()
            off = float((found.float() - expected).norm() / expected.norm())  # padding tiles products otherwise
            assert off < 0.01, f"logits are off by {off:.1%} of their size"
            assert graphs.picked(len(segments))[0].tolist() == found.argmax(-1).tolist()
            moments = graphs.moments()
            assert len(moments) == model.layers and list(moments) == sorted(moments)
            assert torch.allclose(whole.data.float(), kept.data.float(), atol=0.1)
    graphs.close()


# ---- decode with fused layers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["random-llama3-1b", "random-qwen3-0.6b"])
def test_fused_layers_give_what_the_module_gives(shape):
    model = load_model(shape, dtype="bfloat16", device="cuda:0")
    heads = model.config.num_attention_heads
    kernel = pick_kernel("auto", "cuda:0", model.shape, heads, 256, model.config)
    if kernel is None:
        pytest.skip("needs triton")
    fused = FusedDecode.of(model)
    for own in (Own(), EVERY):
        for rows in (1, 4, 16, 24, 40, 100):
            off = step_error(fused, model, kernel, 256, rows, own)
            assert off < 0.06, f"{rows} rows, {own}: off by {off:.1%} of their size"  # 16 bits through all layers


def test_an_engine_captures_steps_with_fused_layers():
    requests = lengths((1, 9), (16, 12), (33, 1), (100, 8))
    config = Config.preset("colocated", model="random-llama3-1b", dtype="bfloat16", max_batch=4, **ON_ONE_GPU)
    with Engine(config) as engine:
        decode = next(iter(engine.executor.workers.values())).decode
        assert decode._fused is not None, "a trial failed"
        assert set(decode.fused_sizes) <= {1, 2, 4}
        run = engine.serve(requests)
    assert run.anomalies == 0 and all(result.token_ids for result in run.results)


# ---- split by SMs ----------------------------------------------------------------------------------------------------

SPLIT = describe()
split_here = pytest.mark.skipif(not SPLIT.startswith("possible"), reason=f"needs a GPU that can be split: {SPLIT}")


@split_here
@pytest.mark.parametrize("preset", ["split", "streamed", "staged", "paged", "dynamic"])
def test_a_split_changes_no_token(preset):
    requests, answers = lengths((1, 9), (16, 12), (33, 1), (100, 8)), []
    for split in (None, 32):
        with Engine(small(preset, sm_split=split, verify_kv=True, **ON_ONE_GPU)) as engine:
            run = engine.serve(requests)
        assert ("32 SMs for decode" in run.machine) == (split is not None)
        check_run(run, requests)
        answers.append([result.token_ids for result in run.results])
    assert answers[0] == answers[1]


@split_here
def test_no_sm_is_in_both_parts():
    from sm_ids import sm_ids

    device = torch.device("cuda", 0)
    parts, ids = split_gpu(device, 32), {}
    for role, part in parts.items():
        with torch.cuda.stream(part.stream()):
            assert sm_count(device) == part.sms
            ids[role] = sm_ids(device)
    everywhere = sm_ids(device)
    for part in parts.values():
        part.close()
    assert {role: len(found) for role, found in ids.items()} == {role: part.sms for role, part in parts.items()}
    assert not ids["decode"] & ids["prefill"] and ids["decode"] | ids["prefill"] <= everywhere


@split_here
def test_a_captured_graph_stays_on_its_part():
    from sm_ids import STAY_NS, note, sm_ids

    device = torch.device("cuda", 0)
    parts = split_gpu(device, 16)
    with torch.cuda.stream(parts["decode"].stream()):
        own = sm_ids(device)  # compiled, too
        ids = torch.full((4096,), -1, dtype=torch.int32, device=device)
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        note[(4096,)](ids, STAY_NS, num_warps=1)
        graph.capture_end()
        graph.replay()
        found = set(ids.tolist())
    del graph
    for part in parts.values():
        part.close()
    assert len(own) == 16 and found == own


@split_here
def test_engines_on_a_split_gpu_come_and_go():
    free = []
    for _ in range(6):
        with Engine(small("staged", sm_split=32, **ON_ONE_GPU)) as engine:
            parts = engine.executor.parts
            assert {role: part.sms for role, part in parts.items()}["decode"] == 32
            engine.serve(lengths((16, 4), (40, 4)))
        assert all(part._context is None and not part._streams for part in parts.values())
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free.append(torch.cuda.mem_get_info()[0])
    assert free[0] - free[-1] < 1 << 30, f"free bytes after each engine: {free}"


def test_blocks_are_copied_to_blocks_and_nothing_else_is_touched():
    shape = KVShape(3, 2, 64, torch.bfloat16)
    source, target = (KVCache(shape, 12, 32, "cuda:0") for _ in range(2))
    source.data.copy_(torch.randn(source.data.shape))
    expected = target.data.clone()
    blocks, onto, layers = (7, 0, 3, 11), (2, 9, 0, 4), range(1, 3)
    expected[1:3, :, list(onto)] = source.data[1:3, :, list(blocks)]
    ids = (torch.tensor(each, device="cuda:0") for each in (blocks, onto))
    copy_blocks(Route(layers, source, blocks, target, onto, None), *ids)
    assert torch.equal(target.data, expected)
