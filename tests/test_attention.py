"""Every case starts from a cache full of NaN, so whatever reads a slot that holds no token of its row shows."""

import sys
from types import SimpleNamespace

import fake_triton
import pytest
import torch
from paged_kernel import PlainKernel

import disagg.run.attention
from disagg.plan.errors import ConfigError, ModelError
from disagg.run.attention import choice, gathered, kernel_trial, paged
from disagg.run.attention.gathered import DecodePlan, PrefillPlan, Workspace
from disagg.run.attention.interface import Options, paged_attention
from disagg.run.kv_cache import KVCache, KVShape, slots_of
from disagg.run.model.batch import DecodeBatch, PrefillBatch, Segment

BLOCK, LAYER, HEADS, DIM, SCALE = 4, 1, 6, 8, 0.3
OPTIONS = {
    "plain": {},
    "window": dict(sliding_window=3),
    "wide_window": dict(sliding_window=100),
    "softcap": dict(softcap=1.5),
    "sinks": dict(s_aux=torch.linspace(-1, 2, HEADS)),
    "all": dict(sliding_window=5, softcap=1.5, s_aux=torch.linspace(-1, 2, HEADS)),
}
# Sums of a few dozen products in fp32 in another order: rounding stays under 1e-6 of values around 1.
CLOSE = dict(rtol=0, atol=3e-6)


def plan_of(batch, cache, workspace):
    return (PrefillPlan if isinstance(batch, PrefillBatch) else DecodePlan)(batch, cache, workspace)


class Case:
    """Random requests, a poisoned cache whose blocks they own in random order, and attention by the formula."""

    def __init__(self, lengths, kv_heads=2, seed=0):
        torch.manual_seed(seed)
        counts = [-(-length // BLOCK) for length in lengths]
        self.cache = KVCache(KVShape(2, kv_heads, DIM, torch.float32), sum(counts) + 3, BLOCK)
        self.cache.poison(range(self.cache.num_blocks))
        self.tables = [table.tolist() for table in torch.randperm(sum(counts)).split(counts)]
        self.q, self.k, self.v = (
            [torch.randn(length, heads, DIM) for length in lengths] for heads in (HEADS, kv_heads, kv_heads)
        )

    def expected(self, request, sliding_window=None, softcap=None, s_aux=None):
        """[length, HEADS, DIM], one token and one head at a time."""
        q, k, v = (x[request].double() for x in (self.q, self.k, self.v))
        out = torch.empty_like(q)
        for place in range(len(q)):
            first = 0 if sliding_window is None else max(0, place - sliding_window + 1)
            for head in range(HEADS):
                shared = head * k.shape[1] // HEADS
                scores = k[first : place + 1, shared] @ q[place, head] * SCALE
                scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
                mass = scores.exp().sum() + (0 if s_aux is None else s_aux[head].double().exp())
                out[place, head] = scores.exp() / mass @ v[first : place + 1, shared]
        return out.float()

    def call(self, batch, picks, workspace=None, **options):
        """Run paged attention for the tokens [(request, start, stop)] and return [T, HEADS, DIM]."""
        q, k, v = (
            torch.cat([x[request][start:stop] for request, start, stop in picks]).transpose(0, 1)[None]
            for x in (self.q, self.k, self.v)
        )
        module = SimpleNamespace(layer_idx=LAYER)
        plan = plan_of(batch, self.cache, workspace or Workspace())
        return paged_attention(module, q, k, v, None, scaling=SCALE, plan=plan, **options)[0][0]

    def prefill(self, picks, on_layer=None, **options):
        tokens = torch.zeros(sum(stop - start for _, start, stop in picks), dtype=torch.long)
        segments = [Segment(start, stop, self.tables[request]) for request, start, stop in picks]
        return self.call(PrefillBatch(tokens, segments, [], on_layer), picks, **options)

    def store(self, request, stop):
        """Write the first tokens of a request as an earlier pass would have."""
        slots = slots_of(self.tables[request], 0, stop, BLOCK)
        self.cache.write(LAYER, slots, self.k[request][:stop], self.v[request][:stop])

    def decode(self, bins, pad=None, **options):
        """One step for the last token of every request; `bins` lists how many rows each group has."""
        picks, groups, row = [(i, len(q) - 1, len(q)) for i, q in enumerate(self.q)], [], 0
        for request, start, _ in picks:
            self.store(request, start)
        for size in bins:
            tables = self.tables[row : row + size]
            width = max(map(len, tables)) + (pad is not None)
            fill = 0 if pad is None else pad
            groups.append((row, row + size, torch.tensor([t + [fill] * (width - len(t)) for t in tables])))
            row += size
        positions = torch.tensor([start for _, start, _ in picks])
        batch = DecodeBatch(torch.zeros(row, dtype=torch.long), positions, groups)
        return batch, self.call(batch, picks, **options)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kv_heads", [1, 2, 6], ids=["mqa", "gqa", "mha"])
def test_packed_prefill_is_attention_of_each_request_alone(kv_heads, options):
    case = Case([3, 4, 5, 1, 13], kv_heads)  # shorter than, equal to, one over a block; one token; several blocks
    found = case.prefill([(i, 0, len(q)) for i, q in enumerate(case.q)], **options)
    expected = torch.cat([case.expected(i, **options) for i in range(5)])
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("cuts", [[4, 8], [1, 2], [3, 10], [5, 12], [12]], ids=str)
def test_chunks_give_what_one_pass_gives(cuts, options):
    case, edges, found = Case([13, 6]), [0, *cuts, 13], []
    for start, stop in zip(edges, edges[1:], strict=False):
        found.append(case.prefill([(0, start, stop)], **options))
    torch.testing.assert_close(torch.cat(found), case.expected(0, **options), **CLOSE)


def test_a_first_and_a_later_chunk_share_a_pass():
    case = Case([13, 6, 9])
    case.prefill([(0, 0, 7), (2, 0, 4)])
    found = case.prefill([(0, 7, 13), (1, 0, 6), (2, 4, 9)])
    expected = torch.cat([case.expected(0)[7:], case.expected(1), case.expected(2)[4:]])
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("bins", [[6], [3, 3], [1] * 6, [2, 4]], ids=str)
def test_decode_reads_exactly_its_own_tokens(bins, options):
    case = Case([1, 3, 4, 5, 9, 20])
    _, found = case.decode(bins, **options)
    expected = torch.stack([case.expected(i, **options)[-1] for i in range(6)])
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("pad", [-1, "free"])
def test_padding_of_a_table_is_never_read(pad):
    case = Case([2, 17, 8])
    _, found = case.decode([3], pad=case.cache.num_blocks - 1 if pad == "free" else pad)
    torch.testing.assert_close(found, torch.stack([case.expected(i)[-1] for i in range(3)]), **CLOSE)


def test_strips_change_nothing(monkeypatch):
    case = Case([1, 3, 4, 5, 9, 20, 20])
    _, whole = case.decode([7])
    monkeypatch.setattr(gathered, "STRIP_BYTES", 45 * case.cache.shape.layer_token_bytes)
    assert gathered.strip_rows(case.cache, 20, 7) == 2
    _, strips = case.decode([7])
    torch.testing.assert_close(strips, whole, **CLOSE)


@pytest.mark.parametrize("options", [{}, dict(sliding_window=3)], ids=["full", "window"])
def test_plain_products_agree_with_sdpa(options):
    case = Case([5, 13])
    picks = [(0, 0, 5), (1, 0, 13)]
    one = case.prefill(picks, **options)
    torch.testing.assert_close(case.prefill(picks, workspace=Workspace("plain"), **options), one, **CLOSE)
    _, fast = case.decode([2], **options)
    _, slow = case.decode([2], workspace=Workspace("plain"), **options)
    torch.testing.assert_close(slow, fast, **CLOSE)


def test_padding_is_counted_once_a_batch_and_is_what_is_gathered(monkeypatch):
    gathered_slots, gather = [], Workspace.gather
    monkeypatch.setattr(Workspace, "gather", lambda *args: gathered_slots.append(len(args[3])) or gather(*args))
    batch, _ = Case([1, 3, 4, 5, 9, 20]).decode([3, 3])
    assert batch.used_slots == 1 + 3 + 4 + 5 + 9 + 20
    assert batch.padded_slots == 3 * 4 + 3 * 20 == sum(gathered_slots)


def test_hand_off_comes_after_the_write_and_before_attention(monkeypatch):
    case, order = Case([5, 3]), []

    def on_layer(layer, key, value):
        order.append("hand-off")
        assert layer == LAYER
        assert torch.equal(key, torch.cat(case.k)) and torch.equal(value, torch.cat(case.v))
        assert torch.equal(case.cache.tokens(LAYER, case.tables[1], 3)[0], case.k[1])

    inner = gathered.attend_segment
    monkeypatch.setattr(gathered, "attend_segment", lambda *args: order.append("attend") or inner(*args))
    case.prefill([(0, 0, 5), (1, 0, 3)], on_layer=on_layer)
    assert order == ["hand-off", "attend", "attend"]


def test_the_gather_buffer_is_kept_between_calls():
    case, workspace = Case([9, 20]), Workspace()
    _, first = case.decode([2], workspace=workspace)
    buffer = workspace._buffer
    _, second = case.decode([2], workspace=workspace)
    assert workspace._buffer is buffer and torch.equal(first, second)


@pytest.mark.parametrize("extra", [dict(attention_mask=torch.zeros(1)), dict(position_bias=torch.zeros(1))], ids=str)
def test_masks_and_biases_of_the_model_are_refused(extra):
    case = Case([2])
    batch = PrefillBatch(torch.zeros(2, dtype=torch.long), [Segment(0, 2, case.tables[0])])
    plan = plan_of(batch, case.cache, Workspace())
    q, k, v = (x[0].transpose(0, 1)[None] for x in (case.q, case.k, case.v))
    with pytest.raises(ModelError, match="mask or position bias"):
        paged_attention(SimpleNamespace(layer_idx=0), q, k, v, plan=plan, **extra)


def test_batches_that_do_not_add_up_are_refused():
    with pytest.raises(AssertionError, match="3 tokens for segments of 2"):
        PrefillBatch(torch.zeros(3, dtype=torch.long), [Segment(0, 2, [0])])
    with pytest.raises(AssertionError, match="gaps"):
        DecodeBatch(torch.zeros(2), torch.zeros(2), [(1, 2, torch.zeros(1, 1))])
    with pytest.raises(AssertionError, match="cover 1 rows"):
        DecodeBatch(torch.zeros(2), torch.zeros(2), [(0, 1, torch.zeros(1, 1))])


def test_a_table_without_room_for_the_new_token_is_refused():
    case = Case([4])
    batch = DecodeBatch(torch.zeros(1, dtype=torch.long), torch.tensor([4]), [(0, 1, torch.tensor([[0]]))])
    with pytest.raises(AssertionError, match="hold no position 4"):
        plan_of(batch, case.cache, Workspace())


def test_choosing_says_what_there_is():
    assert choice.choose("auto", "cpu") == "sdpa" and choice.choose("plain", "cpu") == "plain"
    assert choice.pick_kernel("auto", "cpu", KVShape(1, 2, 8, torch.bfloat16), 4, 16) is None
    assert "flash-attn has kernels for GPUs only" in choice.describe("cpu")


def test_the_attention_that_ran_is_named_with_its_version():
    kernel = SimpleNamespace(name="flash-attn", version="2.8.3")
    assert choice.in_words("auto", kernel).startswith("flash-attn 2.8.3 (chunks)")
    assert choice.in_words("auto", None) == "PyTorch SDPA over gathered slots"
    assert choice.in_words("plain", None) == "plain attention over gathered slots"


def test_flash_attn_brings_its_version(monkeypatch):
    fake = SimpleNamespace(flash_attn_varlen_func=print, __version__="2.8.3")
    monkeypatch.setitem(sys.modules, "flash_attn", fake)
    assert (kernel_trial.FlashKernel().name, kernel_trial.FlashKernel().version) == ("flash-attn", "2.8.3")


def test_doctor_names_flash_attn_with_its_version(monkeypatch):
    kernel = SimpleNamespace(name="flash-attn", version="2.8.3")
    monkeypatch.setattr(kernel_trial, "find_kernel", lambda *given: (kernel, ""))
    assert choice.describe("cuda").startswith("flash-attn 2.8.3 (chunks)")
    with pytest.raises(ConfigError, match="must be 'auto'"):
        choice.choose("fast", "cpu")


@pytest.mark.parametrize("chunks", [[(0, 5), (0, 70)], [(3, 4), (20, 90), (0, 1)]], ids=str)
def test_our_kernels_attend_and_store_chunks_as_gathered_slots_do(monkeypatch, chunks):
    """By a triton made of plain PyTorch: what programs compute, and where they load and store."""
    fake_triton.install(monkeypatch, disagg.run.attention, "kernels")
    monkeypatch.setattr(paged, "stages", lambda device, rows, row_bytes: 1)
    torch.manual_seed(6)
    shape, size = KVShape(1, 2, 12, torch.float32), 16
    ours, plain = (KVCache(shape, 6 * len(chunks), size) for _ in range(2))
    ours.data.normal_()
    plain.data.copy_(ours.data)
    tables = torch.randperm(6 * len(chunks)).view(-1, 6)
    segments = [Segment(start, stop, tables[row]) for row, (start, stop) in enumerate(chunks)]
    batch = PrefillBatch(torch.zeros(sum(s.num_tokens for s in segments)), segments)
    query = torch.randn(len(batch.tokens), 2, 3, 12)
    key, value = torch.randn(2, len(batch.tokens), 2, 12)
    found = paged.PagedPrefill(batch, ours, paged.PagedKernel()).run(0, query, key, value, Options())
    expected = PrefillPlan(batch, plain, Workspace("plain")).run(0, query, key, value, Options())
    assert torch.allclose(found, expected, atol=1e-5) and torch.equal(ours.data, plain.data)


@pytest.mark.parametrize("fault", [None, "mask", "page"])
def test_a_kernel_is_taken_only_where_it_computes_what_plain_attention_does(fault):
    class Kernel(PlainKernel):
        def tiled(self, query, keys, values, places, scale, out):
            places = (places[0].flip(1) if fault == "page" else places[0], *places[1:])
            super().tiled(query, keys, values, places, scale, out)

        def _one(self, query, key, value, scale):
            cut = 1 if fault == "mask" and len(query) > 1 else 0
            return super()._one(query, key[cut:], value[cut:], scale)

    shape = KVShape(1, 2, 16, torch.bfloat16)
    verdict = kernel_trial.try_kernel(Kernel(), torch.device("cpu"), shape, 4, 16)
    assert verdict is None if fault is None else "differs from plain attention" in verdict


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(), None),
        (dict(sliding_window=64), "windows"),
        (dict(sliding_window=64, layer_types=["full_attention"]), None),
        (dict(layer_types=["full_attention", "sliding_attention"]), "windows"),
        (dict(attn_logit_softcapping=30.0), "softcap"),
    ],
    ids=str,
)
def test_models_that_want_more_than_a_kernel_has_gather(fields, words):
    verdict = kernel_trial.unfit(KVShape(1, 2, 8, torch.bfloat16), SimpleNamespace(**fields))
    assert verdict is None if words is None else words in verdict
    assert "not in float32" in kernel_trial.unfit(KVShape(1, 2, 8, torch.float32), SimpleNamespace())
