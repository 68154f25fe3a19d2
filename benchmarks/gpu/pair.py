"""Prefill on one GPU, decode on the other: the peer link, the law on both routes, and gaps beside prefills.

Without a dial copies take what the hardware takes. On a CPU two workers stand for the two GPUs.
"""

import dataclasses
import statistics
from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.common import compute_of, known, one_pass, spans_of
from benchmarks.gpu.ceilings import seconds
from benchmarks.gpu.fixture import Stand
from benchmarks.gpu.right import exact_rows
from benchmarks.gpu.sharing import ROUTES, alone, beside, pool
from benchmarks.gpu.streaming import cost_rows, pair_of_runs, pinned_copy_s
from disagg.plan.errors import EngineError
from disagg.run.engine import Engine
from disagg.show.report import Failed, LeftOut, Row
from disagg.trace.metrics import percentile
from disagg.trace.results import Run

LAW_BARS = {"direct": 3, "staged": 5}  # percentage points
LATE_BAR = 1.5  # layer transfers
GROUPS = (1, 2, 4, 8, 16, 32)  # layers of a copy
HANDED_OFF = ("split", "streamed", "staged", "paged", "dynamic")  # presets whose K/V cross


def link_rows(stand: Stand) -> Iterator[Row]:
    """Ceilings of copies from one device to the other, by size."""
    for nbytes in stand.scale.peer_bytes:
        took = across_s(stand, nbytes)
        note = "one copy, median; what the direct route is measured against"
        yield Row(f"ceiling_peer[{nbytes / 1e6:g} MB]", nbytes / took / 1e9, "GB/s", n=10, note=note)


def across_s(stand: Stand, nbytes: int) -> float:
    """Seconds of one contiguous copy, by events on the device that it leaves."""
    source = torch.empty(nbytes, dtype=torch.uint8, device=stand.prefill_device)
    target = torch.empty(nbytes, dtype=torch.uint8, device=stand.device)
    return seconds(lambda: target.copy_(source, non_blocking=True), torch.device(stand.prefill_device))


# ---- the law ---------------------------------------------------------------------------------------------------------


def streaming_engine(stand: Stand, preset: str) -> Engine:
    """Each prompt is one pass."""
    longest = max(stand.scale.lengths)
    return stand.engine(preset, [longest + 2] * 2, chunk_tokens=longest, max_batch=max(stand.scale.batches[:2]))


def runs_of(stand: Stand, engine: Engine, tokens: int) -> list[Run]:
    """One prompt at a time, handed off; the first two pay for compiling and clocks."""
    return [engine.serve(stand.requests([tokens], 2, index)) for index in range(2 + stand.scale.repeats)][2:]


def law_rows(stand: Stand) -> Iterator[Row | LeftOut]:
    """On both routes, passes without and with a hand-off in turn: what it costs the pass, a hop against a copy of its
    bytes, H against the law with c and tail of the passes without one, and how late the last layer lands."""
    for route, bar in LAW_BARS.items():
        engine = streaming_engine(stand, ROUTES[route])
        for tokens in stand.scale.lengths:
            stand.say(f"law on {route}, {tokens} tokens")
            pairs = [pair_of_runs(stand, engine, tokens, index) for index in range(2 + stand.scale.repeats)][2:]
            copy_s = partial(across_s if route == "direct" else pinned_copy_s, stand)
            yield from cost_rows(stand, "pair_", f"{route},{tokens}", tokens, pairs, copy_s)
            laws, found = [law for _, on in pairs if (law := on.law(0))], [on.overlap(0) for _, on in pairs]
            if len(laws) < len(pairs):
                yield LeftOut(f"pair_law_error_points[{route},{tokens}]", "one copy, after prefill")
                continue
            alone = [compute_of(one_pass(off)) for off, _ in pairs]
            c_s, tail_s = (statistics.median(times) for times in zip(*alone, strict=True))
            blind = [dataclasses.replace(law, compute_s=c_s, tail_s=tail_s) for law in laws]
            shares, by_laws = [known(mine.hidden) for mine in found], [law.hidden for law in blind]
            off = [100 * abs(mine - law) for mine, law in zip(shares, by_laws, strict=True)]
            same = [100 * abs(mine - law.hidden) for mine, law in zip(shares, laws, strict=True)]
            hidden, by_law = statistics.median(shares), statistics.median(by_laws)
            law = blind[0]
            note = (
                f"H measured {hidden:.3f}, law {by_law:.3f}; c {1e3 * c_s:.3f} ms and tail {1e3 * tail_s:.2f} ms of "
                f"passes without a hand-off, hops of a layer {' and '.join(f'{1e3 * hop:.3f}' for hop in law.hops_s)} "
                f"ms, {law.copies} copies; worst {max(off):.1f}"
            )
            yield Row(f"pair_law_error_points[{route},{tokens}]", statistics.median(off), "points", bar, len(off), note)
            name, note = f"pair_law_error_points_same_pass[{route},{tokens}]", "with c, x and tail of the pass itself"
            yield Row(name, statistics.median(same), "points", n=len(same), note=note)
            if route == "direct":
                late = [one.exposed_s / (one.transfer_s / stand.model.layers) for one in found]
                note = f"E ÷ a layer's transfer; E {1e3 * statistics.median(one.exposed_s for one in found):.3f} ms"
                yield Row(
                    f"pair_exposed_layers[{tokens}]", statistics.median(late), "layers", LATE_BAR, len(late), note
                )


# ---- the link --------------------------------------------------------------------------------------------------------


def peer_rows(stand: Stand) -> Iterator[Row]:
    """What copies of the chosen size reach, gather and scatter included; and how much the choice is worth."""
    scale, engine = stand.scale, streaming_engine(stand, "streamed")
    times, copied = {}, {}
    for layers in (*(n for n in GROUPS if n <= stand.model.layers), None):
        stand.say(f"direct, {layers or 'automatic'} layers a copy")
        engine.retune(layers_per_copy=layers)
        runs = runs_of(stand, engine, scale.streamed)
        times[layers] = statistics.median(handed_off_s(run) for run in runs)
        copied[layers] = [span for run in runs for span in spans_of(run, "copy")]
    best = min(seconds for layers, seconds in times.items() if layers)
    words = ", ".join(f"{layers or 'automatic'}: {1e3 * took:.2f}" for layers, took in times.items())
    note = f"from the start of prefill to the last layer landed, ms by layers a copy: {words}"
    yield Row("automatic_over_best", times[None] / best, "×", 1.05, scale.repeats, note)
    for layers in (None, 1):
        spans = copied[layers]
        rate = statistics.median(span.nbytes / (span.end_ns - span.start_ns) * 1e9 for span in spans)
        nbytes = round(statistics.median(span.nbytes for span in spans))
        ceiling = nbytes / across_s(stand, nbytes)
        note = (
            f"{rate / 1e9:.0f} of {ceiling / 1e9:.0f} GB/s, copies of {nbytes / 1e6:.1f} MB with their gather and "
            f"scatter, {scale.streamed} tokens"
        )
        name = "peer_bandwidth_share" + ("" if layers is None else "[a layer a copy]")
        yield Row(name, rate / ceiling, "of the ceiling", None if layers else 0.7, len(spans), note, at_most=False)


def handed_off_s(run: Run) -> float:
    """From the start of the pass to the last copy's end."""
    return (max(span.end_ns for span in spans_of(run, "copy")) - spans_of(run, "prefill")[0].start_ns) / 1e9


# ---- gaps ------------------------------------------------------------------------------------------------------------


def gap_rows(stand: Stand) -> Iterator[Row | LeftOut]:
    """Decode beside back-to-back long prefills on the other device, without and with their hand-offs."""
    scale = stand.scale
    engine = stand.engine("streamed", pool(stand, scale.long, scale.long_count), chunk_tokens=scale.long,
                          max_batch=scale.residents + scale.long_count, prefill=3 * scale.long)  # fmt: skip
    residents = stand.requests(stand.resident_prompts, scale.beside)
    stand.say("decode alone, prefill alone")
    gap, rate = alone(engine, residents, stand.requests([scale.long] * scale.long_count, 1, seed=1))
    for name, new, bar in (("", 1, 1.1), ("[handed off]", 2, None)):
        try:
            gaps, kept = beside(engine, residents, stand.requests([scale.long] * scale.long_count, new, seed=1), stand)
        except EngineError as error:
            yield Failed.of(f"pair_gap_p99_over_alone{name}", error)
            continue
        p50, p99 = (known(percentile(gaps, share)) for share in (0.5, 0.99))
        note = (
            f"p99 {1e3 * p99:.2f} ms, p50 {1e3 * p50:.2f}; alone p99 {1e3 * gap:.2f} ms; "
            f"prefill keeps {kept / rate:.2f} of {rate:.2f} prompts of {scale.long} tokens a second"
        )
        yield Row(f"pair_gap_p99_over_alone{name}", p99 / gap, "×", bar, len(gaps), note)


# ---- right -----------------------------------------------------------------------------------------------------------


def right_rows(stand: Stand) -> Iterator[Row]:
    """Every preset in fp32, and those that hand off once more by way of the host."""
    yield from exact_rows(stand)
    yield from exact_rows(stand, HANDED_OFF, ",no peer access", peer_access=False)
