import itertools
from types import SimpleNamespace

import pytest
import torch

from disagg.plan.errors import EngineError
from disagg.run.clock import now_ns
from disagg.run.gpu import device_clock
from disagg.run.gpu.device_checksum import checksum, checksum_blocks
from disagg.run.gpu.device_clock import Anchor, Moments, bracket
from disagg.run.gpu.stream_copy import runs, wide
from disagg.run.kv_cache import KVCache, KVShape, slots_of

SHAPE = KVShape(layers=3, kv_heads=2, head_dim=4, dtype=torch.float32)


def filled(num_blocks=7, block_size=4, seed=0):
    cache = KVCache(SHAPE, num_blocks, block_size)
    cache.data.copy_(torch.randn(cache.data.shape, generator=torch.Generator().manual_seed(seed)))
    return cache


def test_bytes_follow_from_the_shape():
    assert SHAPE.layer_token_bytes == 2 * 2 * 4 * 4
    assert SHAPE.token_bytes == 3 * SHAPE.layer_token_bytes
    cache = KVCache(SHAPE, 7, 4)
    assert cache.bytes == 7 * 4 * SHAPE.token_bytes == cache.data.numel() * cache.data.element_size()
    assert cache.data.shape == (3, 2, 7, 4, 2, 4)
    assert KVShape(3, 2, 4, torch.bfloat16).token_bytes * 2 == SHAPE.token_bytes


@pytest.mark.parametrize("num_tokens", [1, 3, 4, 5, 8], ids=["one", "shorter", "equal", "one_over", "two_blocks"])
def test_written_tokens_come_back_in_their_order(num_tokens):
    cache, before, table = filled(), filled().data, [5, 0, 3]
    written, slots = torch.randn(2, num_tokens, 2, 4), slots_of(table, 0, num_tokens, 4)
    cache.write(1, slots, *written)
    assert torch.equal(torch.stack(cache.tokens(1, table, num_tokens)), written)
    touched = torch.zeros(7 * 4, dtype=torch.bool).index_fill_(0, slots, True).view(7, 4)
    assert torch.equal(cache.data[1][:, ~touched], before[1][:, ~touched])
    assert torch.equal(cache.data[[0, 2]], before[[0, 2]])


def test_a_chunk_in_the_middle_of_a_block_leaves_its_neighbours():
    cache = filled()
    first = cache.tokens(0, [6, 2], 3)[0]
    key, value = torch.randn(2, 4, 2, 4)
    cache.write(0, slots_of([6, 2], 3, 7, 4), key, value)
    assert torch.equal(cache.tokens(0, [6, 2], 7)[0], torch.cat([first, key]))


def test_a_strided_key_is_written_like_a_contiguous_one():
    cache, key = filled(), torch.randn(2, 5, 4).transpose(0, 1)
    cache.write(0, slots_of([1, 2], 0, 5, 4), key, key + 1)
    assert torch.equal(cache.tokens(0, [1, 2], 5)[1], key + 1)


def test_mapped_blocks_are_equal_and_all_others_untouched():
    source, target = filled(seed=1), filled(num_blocks=9, seed=2)
    before, original = target.data.clone(), source.data.clone()
    here, there, layers = torch.tensor([4, 0, 6]), torch.tensor([8, 3, 1]), range(1, 3)
    copy = source.read_blocks(layers, here)
    assert copy.shape == (2, 2, 3, 4, 2, 4) and copy.is_contiguous()
    target.write_blocks(layers, there, copy)
    assert torch.equal(target.data[1:, :, there], source.data[1:, :, here])
    others = torch.tensor([0, 2, 4, 5, 6, 7])
    assert torch.equal(target.data[:, :, others], before[:, :, others])
    assert torch.equal(target.data[0], before[0])
    assert torch.equal(source.data, original)


def test_read_blocks_fills_the_buffer_it_is_given():
    source, out = filled(), torch.empty(1, 2, 2, 4, 2, 4)
    assert source.read_blocks(range(2, 3), torch.tensor([6, 1]), out=out) is out
    assert torch.equal(out[0], source.data[2][:, [6, 1]])


def test_poison_reaches_every_layer_of_its_blocks_and_no_other():
    cache = filled()
    cache.poison([2, 5])
    assert cache.data[:, :, [2, 5]].isnan().all()
    assert not cache.data[:, :, [0, 1, 3, 4, 6]].isnan().any()


def test_layers_beyond_the_last_and_a_table_that_is_too_short_are_refused():
    with pytest.raises(AssertionError, match="range"):
        filled().read_blocks(range(2, 4), torch.tensor([0]))
    with pytest.raises(AssertionError, match="2 blocks of 4 hold no position 8"):
        slots_of([1, 2], 0, 9, 4)


@pytest.mark.parametrize(
    "blocks, free, words",
    [
        (10**12, None, r"bytes asked, .* free.* Lower prefill_blocks"),
        (2, 1000, "1,536 bytes asked, 1,000 are free"),
        (0, None, "at least one"),
    ],
    ids=["too large", "others use it", "nothing"],
)
def test_a_cache_that_cannot_be_says_how_much_and_what_to_lower(monkeypatch, blocks, free, words):
    if free is not None:
        monkeypatch.setattr("disagg.run.gpu.memory.free_bytes", lambda device: free)
    with pytest.raises(EngineError, match=words):
        KVCache(SHAPE, blocks, 4)


def test_an_allocator_that_refuses_becomes_an_engine_error(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("can't allocate memory\nframes")

    monkeypatch.setattr(torch, "zeros", refuse)
    with pytest.raises(EngineError, match="can't allocate memory$"):
        KVCache(SHAPE, 2, 4)


@pytest.mark.parametrize("dtype, head_dim", [(torch.float32, 4), (torch.bfloat16, 4), (torch.bfloat16, 3)])
def test_checksums_are_equal_wherever_the_blocks_lie_and_differ_where_tokens_do(dtype, head_dim):
    shape = KVShape(layers=3, kv_heads=2, head_dim=head_dim, dtype=dtype)
    cache, tokens, table = KVCache(shape, 9, 4), 10, [7, 2, 5]
    key, value = torch.randn(2, tokens, 2, head_dim, generator=torch.Generator().manual_seed(1)).to(dtype)
    cache.data.fill_(float("nan"))  # what lies behind the last token does not count
    cache.write(1, slots_of(table, 0, tokens, 4), key, value)
    left = checksum(key, value)
    assert left.dtype == torch.int64 and left.shape == (2,)
    found = checksum_blocks(cache.read_blocks(range(3), torch.tensor(table)), tokens)
    assert torch.equal(found[1], left) and not torch.equal(found[0], left)
    elsewhere = KVCache(shape, 5, 4)
    elsewhere.write_blocks(range(3), torch.tensor([1, 4, 0]), cache.read_blocks(range(3), torch.tensor(table)))
    moved = checksum_blocks(elsewhere.read_blocks(range(3), torch.tensor([1, 4, 0])), tokens)
    assert torch.equal(moved, found)
    assert not torch.equal(checksum(value, key), left), "keys for values"
    assert not torch.equal(checksum(key.flip(0), value), left), "another order of tokens"
    key[9, 1].view(-1)[-1:].view(torch.uint8)[0] ^= 1
    assert not torch.equal(checksum(key, value), left), "one bit"


def test_a_strided_key_has_the_checksum_of_a_contiguous_one():
    key, value = torch.randn(2, 2, 5, 4).transpose(1, 2)
    assert torch.equal(checksum(key, value), checksum(key.contiguous(), value.contiguous()))


def test_checksums_wrap_around_alike():
    large = torch.full((1, 2, 1, 1 << 12, 2, 4), -1, dtype=torch.int32).view(torch.float32)
    words = 2 * (1 << 12) * 2 * 4
    assert checksum_blocks(large, 1 << 12).tolist() == [[-words, -words * (words + 1) // 2]]


def test_runs_are_the_stretches_that_follow_each_other_at_both_ends():
    assert list(runs((4, 5, 6, 9, 10, 2), (1, 2, 3, 4, 6, 7))) == [(4, 1, 3), (9, 4, 1), (10, 6, 1), (2, 7, 1)]
    assert list(runs((3,), (8,))) == [(3, 8, 1)]
    assert list(runs((3, 2), (8, 7))) == [(3, 8, 1), (2, 7, 1)], "backwards is no run"


def test_wide_words_are_the_same_bytes():
    data = torch.randn(2, 2, 3, 4, 2, 4)
    assert wide(data).shape == (2, 2, 3, 4, 2, 2) and wide(data).data_ptr() == data.data_ptr()
    assert wide(torch.randn(2, 3)).dtype == torch.float32


class Tick:
    """An event of a device whose clock runs at `rate` of the host's."""

    def __init__(self, host_ns: int, rate: float = 1.0):
        self.device_ns = host_ns / rate

    def elapsed_time(self, later: "Tick") -> float:
        return float(torch.tensor((later.device_ns - self.device_ns) / 1e6, dtype=torch.float32))


def test_the_narrowest_bracket_is_the_anchor():
    times = iter([0, 900, 1000, 1010, 2000, 2300])
    anchor = bracket(lambda: Tick(0), lambda: next(times), tries=3)
    assert (anchor.at_ns, anchor.error_ns, anchor.rate) == (1005, 5, 1.0)


def test_events_are_mapped_within_a_microsecond_up_to_ten_seconds():
    anchor = Anchor(Tick(5_000), 5_000, 5)
    for after in (-40_000, 0, 1_000, 123_456_789, 9_999_999_999):
        assert abs(anchor.ns(Tick(5_000 + after)) - (5_000 + after)) <= 1_000


def test_a_renewed_anchor_knows_the_rate_and_by_how_much_the_old_one_was_off():
    rate = 1 + 2e-5  # 20 us a second
    first = Anchor(Tick(0, rate), 0, 4_000)
    second = first.renewed(Anchor(Tick(2_000_000_000, rate), 2_000_000_000, 3_000))
    assert abs(second.error_ns - 40_000) < 1_000 and abs(second.rate - rate) < 1e-6
    third = second.renewed(Anchor(Tick(4_000_000_000, rate), 4_000_000_000, 3_000))
    assert third.error_ns == 3_000
    late = third.renewed(Anchor(Tick(4_000_000_000_000, rate), 4_000_000_000_000, 2_000))
    assert (late.error_ns, late.rate) == (2_000, third.rate), "after an hour float32 says nothing of a rate"
    delayed = Anchor(Tick(4_002_000_000_000, rate), 4_002_000_000_000, 90_000_000)
    assert late.renewed(delayed) is late, "it stood in line"


def test_moments_on_a_cpu_are_host_times():
    moments = Moments(torch.device("cpu"))
    before = now_ns()
    moments.mark()
    moments.mark()
    assert before <= moments.read()[0] <= moments.read()[1] <= now_ns()
    moments.keep_up(0)  # they have been


def test_the_host_keeps_so_many_moments_ahead_of_a_gpu(monkeypatch):
    waited = []

    class Event:
        def __init__(self, enable_timing):
            self.number = next(numbers)

        def record(self, stream):
            pass

        def synchronize(self):
            waited.append(self.number)

    numbers = itertools.count()
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(device_clock, "clock_of", lambda device: SimpleNamespace(anchor=lambda: "an anchor"))
    moments = Moments(torch.device("cuda", 0))
    for _ in range(5):
        moments.mark()
        moments.keep_up(2)
    assert waited == [0, 1, 2]
