"""Decode's own kernels on the CPU, under a triton of few lines: how tokens are cut into shares, and how those join."""

import fake_triton
import pytest
import torch

from disagg.run import attention
from disagg.run.attention import split_decode
from disagg.run.attention.gathered import DecodePlan, Workspace
from disagg.run.attention.interface import Options
from disagg.run.attention.paged import PagedDecode, PagedKernel
from disagg.run.kv_cache import KVCache, KVShape
from disagg.run.model.batch import DecodeBatch

WHOLE, PART = 132, 32  # SMs of an H100 or H200, and of a part
MIXED = [37 * n % 4000 + 1 for n in range(64)]
LONG_ONE = [600] * 8 + [8192]


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    fake_triton.install(monkeypatch, attention, "kernels")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors of a few numbers: threads would only wait for each other
    yield
    torch.set_num_threads(threads)


def cut(lengths, kv_heads=8, sms=WHOLE, tile=32) -> dict[int, list[tuple[int, int]]]:
    """Start and stop of each row's shares, once the table has been found in order."""
    items = split_decode.cut(torch.tensor(lengths, dtype=torch.int32), kv_heads, sms, tile).tolist()
    rows: dict[int, list[tuple[int, int]]] = {}
    used = sum(count > 0 for *_, count in items)
    assert all(item == [0] * split_decode.FIELDS for item in items[used:]), "an item to spare stands before a real one"
    for index, (row, start, stop, first, count) in enumerate(items[:used]):
        rows.setdefault(row, []).append((start, stop))
        assert index - first == len(rows[row]) - 1 and items[first][0] == row and items[first + count - 1][0] == row
    return rows


@pytest.mark.parametrize("sms, kv_heads, tile", [(WHOLE, 8, 32), (WHOLE, 1, 16), (PART, 8, 64), (8, 3, 16)])
@pytest.mark.parametrize(
    "lengths",
    [[0], [1], [8192], [63, 64, 65], [0] * 8, [0] * 7 + [1 << 20], LONG_ONE, MIXED, [1 << 20] * 256, [*range(99)]],
    ids=["empty", "one", "long", "edges", "padding", "longest", "long_one", "mixed", "most", "ramp"],
)
def test_every_token_is_in_one_share(lengths, sms, kv_heads, tile):
    rows = cut(lengths, kv_heads, sms, tile)
    fair = max(1, sum(lengths)) * kv_heads / (split_decode.PROGRAMS_PER_SM * sms)
    assert sorted(rows) == list(range(len(lengths)))
    for row, parts in rows.items():
        starts, stops = zip(*parts, strict=True)
        assert starts[0] == 0 and stops[-1] == lengths[row] and starts[1:] == stops[:-1]
        assert len(parts) <= split_decode.MOST_SHARES and all(start % tile == 0 for start in starts)
        assert len(parts) == 1 or all(start < stop for start, stop in parts)
        least = max(split_decode.LEAST_SHARE, 1.5 * fair, lengths[row] / split_decode.MOST_SHARES)
        assert stops[0] - starts[0] < least + tile, "a share that others wait for"
    longest = [parts[0][1] - parts[0][0] for parts in rows.values()]
    assert all(late < early + tile for early, late in zip(longest, longest[1:], strict=False)), "a long share is late"


@pytest.mark.parametrize("rows, count", [(1, 16), (2, 16), (4, 16), (8, 8), (16, 4), (32, 2), (64, 1), (128, 1)])
def test_rows_of_one_length_keep_to_the_programs_that_there_are(rows, count):
    for context in (1000, 1024):
        assert {len(parts) for parts in cut([context] * rows).values()} == {count}


def test_a_long_row_is_cut_the_others_are_not_and_padding_changes_nothing():
    assert [len(parts) for _, parts in sorted(cut(LONG_ONE, sms=PART).items())] == [1] * 8 + [10]
    assert [len(parts) for _, parts in sorted(cut([600] * 63 + [8192], tile=64).items())] == [1] * 63 + [12]
    assert {row: parts for row, parts in cut([600, 8192, 0, 0]).items() if row < 2} == cut([600, 8192])


@pytest.mark.parametrize(
    "sms, heads, kv_heads, dim, block", [(WHOLE, 8, 2, 16, 32), (PART, 5, 1, 64, 16), (8, 3, 3, 80, 256)]
)
@pytest.mark.parametrize(
    "contexts",
    [[0], [1, 0, 0], [31, 32, 33, 63, 64, 65], [70, 40, 2200], [97 * n % 400 for n in range(12)]],
    ids=["first", "padding", "edges", "long_one", "mixed"],
)
def test_shares_join_to_what_gathered_slots_give(monkeypatch, contexts, sms, heads, kv_heads, dim, block):
    monkeypatch.setattr(split_decode, "sm_count", lambda device: sms)
    rows, width = len(contexts), max(contexts) // block + 1
    ours, plain = (KVCache(KVShape(2, kv_heads, dim, torch.float32), rows * width, block) for _ in range(2))
    torch.manual_seed(5)
    ours.data.normal_()
    tables = torch.randperm(rows * width).view(rows, width)
    for row, context in enumerate(contexts):  # what lies beyond a row must not be looked at
        ours.poison(tables[row, context // block + 1 :])
    plain.data.copy_(ours.data)
    lengths = torch.tensor(contexts)
    batch = DecodeBatch(torch.zeros(rows, dtype=torch.long), lengths, [(0, rows, tables)])
    exact = DecodePlan(batch, plain, Workspace("plain"))
    step = PagedDecode(ours, PagedKernel(), tables.int(), lengths.int())
    for layer in (0, 1, 0):  # scratch is used again
        query = torch.randn(rows, kv_heads, heads // kv_heads, dim)
        key, value = torch.randn(2, rows, kv_heads, dim)
        found = step.run(layer, query, key, value, Options())
        expected = exact.run(layer, query, key, value, Options())
        assert torch.allclose(found, expected, atol=1e-5), "beyond what sums of fp32 in another order differ by"
        assert torch.equal(ours.data.nan_to_num(7.0), plain.data.nan_to_num(7.0))
