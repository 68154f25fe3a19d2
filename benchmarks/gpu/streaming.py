"""Prefill while its layers travel through pinned memory: share of the matmul peak, cost of streaming, the law."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.common import compute_of, known, one_pass, seconds, spans_of
from benchmarks.gpu.ceilings import pinned_s
from benchmarks.gpu.fixture import Stand
from benchmarks.gpu.host_time import HostTime
from disagg.run.engine import Engine
from disagg.run.gpu import hand_off_turn
from disagg.show.plots.roofline import prefill_work
from disagg.show.report import LeftOut, Row
from disagg.trace.law import Law
from disagg.trace.results import Run

BARS = {2048: 0.78, 8192: 0.76}  # share of matmul peak, by tokens
SLOWS = {256: 15, 512: 9, 1024: 9, 2048: 6, 4096: 5, 8192: 4}  # % that a small shape's pass may take longer, by tokens
SMALL_MS = {512: 2.6, 2048: 7.5}  # of such a pass with its hand-off
# Before each pass of the law, in passes: after a link that was busy alone a GPU's clock is higher than after a pass.
REST = 3
PAIR = (0.60, 0.96)  # hidden fractions of the seed report: where the law puts them, they are measured


def staged_engine(stand: Stand, **changes: Any) -> Engine:
    longest, most = max(stand.scale.prompts), max(stand.scale.batches[:2])
    return stand.engine("staged", [longest + 2] * 2, chunk_tokens=longest, max_batch=most, **changes)


def pair_of_runs(stand: Stand, engine: Engine, tokens: int, seed: int, rest_s: float = 0.0) -> tuple[Run, Run]:
    """The same prompt without and with a hand-off, each after a rest; which comes first alternates."""
    found = {}
    for new in (1, 2) if seed % 2 else (2, 1):
        time.sleep(rest_s)
        found[new] = engine.serve(stand.requests([tokens], new, seed))
    return found[1], found[2]


def prefill_rows(stand: Stand) -> Iterator[Row | LeftOut]:
    """No dial: pinned memory is the link."""
    scale, engine, small = stand.scale, staged_engine(stand), stand.shape == "qwen3-0.6b"
    for tokens in scale.prompts:
        stand.say(f"prefill of {tokens} tokens, with and without its layers streamed")
        shares, late, took, pairs, host = [], [], [], [], HostTime(engine)
        flops = prefill_work(stand.sizes, tokens).flops
        for index in range(2 + scale.repeats):
            before_ns = host.lanes_ns()
            with host.watched():
                off, on = pair_of_runs(stand, engine, tokens, index)
            if index < 2:
                continue
            host.add(one_pass(on), host.lanes_ns() - before_ns)
            took.append(seconds(one_pass(on)))
            shares.append(flops / took[-1] / stand.limits.matmul)
            pairs.append((off, on))
            overlap = on.overlap(0)
            late.append(overlap.exposed_s / (overlap.transfer_s / stand.model.layers))
        ms, n = 1e3 * statistics.median(took), scale.repeats
        lasting = flops / (ms / 1e3) / stand.sustained
        note = f"{ms:.1f} ms, staged hand-off on; {lasting:.2f} of what products sustain; {stand.limits.words}"
        yield Row(f"prefill_share[{tokens}]", statistics.median(shares), "of matmul", BARS.get(tokens), n, note,
                  at_most=False)  # fmt: skip
        note = "with its hand-off, from the command to token 1"
        yield Row(f"prefill_ms[{tokens}]", ms, "ms", SMALL_MS.get(tokens) if small else None, n, note)
        note = f"E ÷ both hops of one layer; a layer's hops take {1e3 * overlap.transfer_s / stand.model.layers:.3f} ms"
        yield Row(f"exposed_layers[{tokens}]", statistics.median(late), "layers", 1, n, note)
        yield from cost_rows(stand, "", f"{tokens}", tokens, pairs, partial(pinned_copy_s, stand))
        yield from host.rows(tokens)
    tokens = scale.streamed
    stand.say(f"prefill of {tokens} tokens, its blocks scattered")
    with patch.object(hand_off_turn, "MOST_RUNS", 0):  # no blocks lie in few enough runs for copy engines
        pairs = [pair_of_runs(stand, engine, tokens, index) for index in range(2 + scale.repeats)][2:]
    slow = [100 * (seconds(one_pass(on)) / seconds(one_pass(off)) - 1) for off, on in pairs]
    note = "as above, where kernels gather and scatter"
    yield Row(f"streaming_slows_prefill_pct[{tokens},scattered]", statistics.median(slow), "%", n=len(slow), note=note)


def cost_rows(
    stand: Stand, kind: str, where: str, tokens: int, pairs: list[tuple[Run, Run]], copy_s: Callable[[int], float]
) -> Iterator[Row]:
    """How much longer a pass takes with its hand-off, and its hops beside copies of the same bytes (`copy_s`)."""
    slow = [100 * (seconds(one_pass(on)) / seconds(one_pass(off)) - 1) for off, on in pairs]
    bar, note = SLOWS.get(tokens) if stand.shape == "qwen3-0.6b" else 2, "with against without, alternating, no dial"
    yield Row(f"{kind}streaming_slows_prefill_pct[{where}]", statistics.median(slow), "%", bar, len(slow), note)
    hops = [span for _, on in pairs for span in spans_of(on, "copy")]
    hops = [span for span in hops if span.count == hops[0].count]  # the last one may have fewer layers
    hop_s = statistics.median(span.occupied_ns for span in hops) / 1e9
    link_s = copy_s(hops[0].count * tokens * stand.model.shape.layer_token_bytes)
    note = f"a hop of {hops[0].count} layers {1e6 * hop_s:.0f} µs, a copy of its bytes alone {1e6 * link_s:.0f} µs"
    yield Row(f"{kind}hop_over_link[{where}]", hop_s / link_s, "×", 1.15, len(hops), note)


def pinned_copy_s(stand: Stand, nbytes: int) -> float:
    """The slower direction of a copy between the device and pinned memory."""
    return max(pinned_s(torch.device(stand.device), nbytes))


def compute_alone(stand: Stand, engine: Engine) -> tuple[float, float]:
    """c and the tail in seconds, of passes whose layers stay where they are; medians of five."""
    tokens = stand.scale.streamed
    for index in range(3):
        rest_s = REST * seconds(one_pass(pair_of_runs(stand, engine, tokens, index)[0]))
    found = [compute_of(one_pass(pair_of_runs(stand, engine, tokens, index, rest_s)[0])) for index in range(5)]
    return statistics.median(c for c, _ in found), statistics.median(tail for _, tail in found)


def over_dials(
    stand: Stand, engine: Engine, dials: dict[str, float], compute_s: float
) -> Iterator[tuple[str, float, list[tuple[Run, Run]]]]:
    """Each dial by its name, a layer's hop in its compute, and pairs of runs of one prompt, without and with a
    hand-off; then the dial is off again."""
    tokens, rest_s = stand.scale.streamed, REST * stand.model.layers * compute_s
    for name, ratio in dials.items():
        stand.say(f"law, a layer's hop of {ratio:.2f} × its compute")
        link = stand.model.shape.layer_token_bytes * tokens / (ratio * compute_s) if ratio else None
        engine.retune(link=link)
        yield name, ratio, [pair_of_runs(stand, engine, tokens, index, rest_s) for index in range(stand.scale.repeats)]
    engine.retune(link=None)


def law_rows(stand: Stand) -> Iterator[Row]:
    """H measured against the two-hop law: with c and tail of passes without a hand-off, run in turn with those that
    have one, and beside it with those of the same pass."""
    scale, engine = stand.scale, staged_engine(stand)
    compute_s, tail_s = compute_alone(stand, engine)
    dials = {f"{ratio:g}": ratio for ratio in scale.dials}
    for share in PAIR:
        ratio = dial_for(
            share, Law(stand.model.layers, compute_s, (0.0, 0.0), tail_s, ring_slots=engine.config.ring_slots)
        )
        if ratio is not None:
            dials[f"{share:.0%}"] = ratio
    for name, dial, pairs in over_dials(stand, engine, dials, compute_s):
        alone = [compute_of(one_pass(off)) for off, _ in pairs]
        c_s, rest_s = (statistics.median(times) for times in zip(*alone, strict=True))
        hop_s, same, foretold, measured, law_says = dial * compute_s, [], [], [], []
        for _, on in pairs:
            law, hidden = known(on.law(0)), known(on.overlap(0).hidden)
            blind = dataclasses.replace(law, compute_s=c_s, tail_s=rest_s, hops_s=(hop_s,) * 2 if dial else law.hops_s)
            same.append(100 * abs(hidden - law.hidden))
            foretold.append(100 * abs(hidden - blind.hidden))
            measured.append(hidden)
            law_says.append(blind.hidden)
        note = (
            f"H measured {statistics.median(measured):.3f}, law {statistics.median(law_says):.3f}, hop {dial:.2f} c, "
            f"c {1e3 * c_s:.3f} ms, tail {1e3 * rest_s:.2f} ms of passes without a hand-off; worst {max(foretold):.1f}"
        )
        yield Row(f"law_error_points[{name}]", statistics.median(foretold), "points", 3, len(pairs), note)
        note = "with c, x and tail of the pass itself"
        yield Row(f"law_error_points_same_pass[{name}]", statistics.median(same), "points", n=len(pairs), note=note)


def dial_for(hidden: float, law: Law) -> float | None:
    """The hop, in a layer's compute, at which the law gives this hidden fraction; None where no hop does."""
    low, high = 0.01, 16.0
    for _ in range(60):
        middle = (low + high) / 2
        found = dataclasses.replace(law, hops_s=(middle * law.compute_s,) * 2).hidden
        low, high = (middle, high) if found > hidden else (low, middle)
    return low if abs(found - hidden) < 0.01 else None
