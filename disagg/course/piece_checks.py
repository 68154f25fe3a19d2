"""What is wrong with a student's piece, first of all, in words with numbers; None where it is right."""

import random
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from disagg.course.bridge import write
from disagg.course.pieces import ReadyQueue, bins, next_batch
from disagg.course.student_engine import Hops
from disagg.plan.blocks import blocks_for
from disagg.plan.config import Config
from disagg.plan.link import Link
from disagg.plan.request import Request
from disagg.run.kv_cache import slots_of
from disagg.run.model.model import Model, load_model
from disagg.twin.simulate import simulate
from disagg.twin.simulated_engine import Speeds

Wrong = str | None
Copied = tuple[int, str, int, int, int]  # start, lane, request, layer, end


def wrong_attention(piece: Callable) -> Wrong:
    draw = random.Random(1)
    cases: list[tuple[list[float], list[list[float]], list[list[float]]]]
    cases = [([1, 0], [[1, 0]], [[5, 7]]), ([0, 0], [[1, 2], [3, 4]], [[2, 0], [4, 8]])]
    [drawn], more, most = ([[round(draw.gauss(0, 2), 1) for _ in range(4)] for _ in range(n)] for n in (1, 3, 3))
    cases.append((drawn, more, most))
    for query, keys, values in cases:
        q, k, v = (torch.tensor(x, dtype=torch.float64) for x in ([query], keys, values))
        wanted, found = F.scaled_dot_product_attention(q, k, v)[0].tolist(), piece(query, keys, values)
        if not _close(found, wanted):
            given = f"query {query}, keys {keys}, values {values}"
            return f"{given}: yours gives {_short(found)}, torch {_short(wanted)}"
    return None


def _close(found: Any, wanted: list[float]) -> bool:
    same = isinstance(found, list | tuple) and len(found) == len(wanted)
    return same and all(abs(a - b) < 1e-6 for a, b in zip(found, wanted, strict=True))


def _short(numbers: Any) -> str:
    rounded = isinstance(numbers, list | tuple) and all(isinstance(x, int | float) for x in numbers)
    return str([round(x, 3) for x in numbers] if rounded else numbers)


def wrong_cache(piece: Callable) -> Wrong:
    """Tensors of one KV head of size 1, so that a token is a number; then the small model writes with it."""
    mine, fed = piece(), [(0, [1, 2, 3]), (1, [7, 8, 9]), (0, [4]), (1, [10]), (0, [5])]
    kept: dict[int, list[int]] = {}
    for layer, tokens in fed:
        kept[layer] = kept.get(layer, []) + tokens
        keys = torch.tensor(tokens, dtype=torch.float32).view(-1, 1, 1)
        found = mine.update(layer, keys, -keys)
        for name, sign, part in zip(("keys", "values"), (1, -1), found, strict=True):
            wanted = [sign * token for token in kept[layer]]
            if part.flatten().tolist() != wanted:
                had = f"layer {layer} has been given {'keys' if sign > 0 else 'values'} {wanted}"
                return f"{had}, and update gives back the {name} {part.flatten().tolist()}"
    left = len(piece().update(0, keys, -keys)[0])
    if left != 1:
        return f"a second cache begins with {left - 1} tokens of the first; each request has a cache of its own"
    ids = list(range(40, 60))
    cached, plain = write(tiny(), ids, 8, piece), write(tiny(), ids, 8)
    if cached.tokens != plain.tokens:
        return f"the model writes {cached.tokens} with it, and {plain.tokens} without a cache"
    return None


@cache
def tiny() -> Model:
    return load_model("tiny")


def wrong_batch(piece: Callable) -> Wrong:
    for needs, places in (([3, 1, 4, 2], 2), ([2, 2, 1, 1, 5], 3), ([1], 4), ([2, 1, 2], 1)):
        mine, ours = (steps_of(function, needs, places) for function in (piece, next_batch))
        for step, (found, wanted) in enumerate(zip(mine, ours, strict=False)):
            if found != wanted:
                what = f"answers of {needs} steps, {places} places: step {step} has rows"
                return f"{what} {found}; with rows that leave at once it has {wanted}"
    return None


def steps_of(piece: Callable, needs: list[int], places: int) -> list[list[int]]:
    """The row numbers of each step; as many steps as there would be without sharing, the last ones empty."""
    rows = [_Answer(number, left) for number, left in enumerate(needs)]
    waiting, batch = list(rows), list[_Answer]()
    steps = []
    for _ in range(sum(needs)):
        batch = list(piece(batch, waiting, places))
        steps.append([row.number for row in batch])
        for row in batch:
            row._left -= 1
    return steps


class _Answer(SimpleNamespace):
    def __init__(self, number: int, left: int) -> None:
        super().__init__(number=number, _left=left)

    @property
    def done(self) -> bool:
        return self._left <= 0


def wrong_queue(piece: Callable) -> Wrong:
    return _first_copy_apart(Hops(piece, None), "streamed")


def wrong_ring(piece: Callable) -> Wrong:
    ring = piece()
    first, second, third = ring.put("a"), ring.put("b"), ring.put("c")
    if {first, second} != {0, 1} or third is not None:
        return f"three puts into an empty ring give {first}, {second}, {third}; two slots are 0 and 1, then None"
    found = ring.take(first), ring.take(second), ring.put("d")
    if found[:2] != ("a", "b") or found[2] not in (0, 1):
        return f"slots {first} and {second} held 'a' and 'b'; they give {found[:2]}, and the next put gives {found[2]}"
    return _first_copy_apart(Hops(ReadyQueue, piece), "staged")


def _first_copy_apart(hops: Hops, preset: str) -> Wrong:
    theirs = hand_off(hops, preset)
    mine = sorted((start, lane, request, layer, end) for lane, request, layer, start, end in hops.copies)
    for number, (found, wanted) in enumerate(zip(mine, theirs, strict=False)):
        if found != wanted:
            return f"copy {number}, yours: {_copy(*found)}; simulate: {_copy(*wanted)}"
    return None if len(mine) == len(theirs) else f"{len(mine)} copies leave; simulate has {len(theirs)}"


def hand_off(hops: Hops, preset: str) -> list[Copied]:
    """Three requests of 6 layers, the last two of which share a pass, over links that take 40 ms a layer; gives the
    copies of simulate."""
    speeds, x_ns = Speeds(layers=6, tail=0), 40_000_000
    nbytes = 16 * speeds.token_bytes // speeds.layers
    config = Config.preset(preset, link=Link(nbytes / x_ns * 1e9), ring_slots=2, block_size=16)
    run = simulate(config, [Request([7] * 16, 2, arrival_s=at) for at in (0, 0.01, 0.01)], speeds)
    spans = [span for span in run.timeline.spans if span.kind == "copy"]
    for span in sorted(spans, key=lambda span: (span.ready_ns, span.requests, span.index)):
        if not span.place.startswith("up"):
            hops.at(span.ready_ns, hops.put, span.requests[0], span.index, x_ns)
    hops.run()
    return sorted((s.start_ns, s.place.split()[0], s.requests[0], s.index, s.end_ns) for s in spans)


def _copy(start: int, lane: str, request: int, layer: int, end: int) -> str:
    return f"{lane}, request {request}, layer {layer}, {start / 1e6:.0f} to {end / 1e6:.0f} ms"


def wrong_table(piece: Callable) -> Wrong:
    """Two requests grow in turns in 8 blocks of 4."""
    free = list(range(8))
    tables = [piece(free, 4), piece(free, 4)]
    held = [0, 0]
    for who, more in ((0, 6), (1, 4), (0, 2), (1, 1), (0, 1), (0, 9), (1, 8)):
        fits = blocks_for(held[who] + more, 4) - blocks_for(held[who], 4) <= 8 - sum(blocks_for(n, 4) for n in held)
        found = tables[who].add(more)
        what = f"request {who} has {held[who]} tokens and adds {more}"
        if bool(found) != fits:
            return f"{what}: add gives {found}, and there {'is room' if fits else 'are too few blocks'}"
        held[who] += more if fits else 0
        if apart := _table_apart(tables, held, free):
            return f"{what}: {apart}"
    for who, table in enumerate(tables):
        table.give_back()
        held[who] = 0
        if apart := _table_apart(tables, held, free):
            return f"request {who} gives its blocks back: {apart}"
    return None


def _table_apart(tables: list[Any], held: list[int], free: list[int]) -> Wrong:
    for who, (table, tokens) in enumerate(zip(tables, held, strict=True)):
        if len(table.blocks) != blocks_for(tokens, 4):
            return f"{tokens} tokens need {blocks_for(tokens, 4)} blocks of 4, and table {who} has {table.blocks}"
        if list(table.slots()) != (wanted := slots_of(table.blocks, 0, tokens, 4).tolist()):
            return f"with the blocks {table.blocks}, slots gives {table.slots()}; the package has {wanted}"
    blocks = sorted([*free, *(block for table in tables for block in table.blocks)])
    if blocks != list(range(8)):
        return f"free and held blocks together are {blocks}, and the memory has 0 to 7 once each"
    return None


def wrong_bins(piece: Callable) -> Wrong:
    cases = (([20, 400, 30], (32,)), ([32, 33, 128, 129, 5], (32, 128)), ([7, 7], ()), ([90], (32, 128)))
    for lengths, bounds in cases:
        found, wanted = piece(lengths, bounds), bins(lengths, bounds)
        if found != wanted:
            return f"rows of {lengths} tokens with bounds {bounds} give {found}; the package's bins have rows {wanted}"
    return None


CHECKS: dict[str, Callable[[Callable], Wrong]] = {
    "attention": wrong_attention,
    "cache": wrong_cache,
    "batch": wrong_batch,
    "queue": wrong_queue,
    "ring": wrong_ring,
    "table": wrong_table,
    "bins": wrong_bins,
}
