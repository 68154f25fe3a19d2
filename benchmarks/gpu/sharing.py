"""One GPU for both workers: what prefill and hand-offs do to decode's gaps, by SMs and by streams."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace

from benchmarks.common import known, seconds, spans_of
from benchmarks.gpu.fixture import Stand
from disagg.plan.errors import DisaggError, EngineError
from disagg.plan.link import Link
from disagg.plan.request import Request
from disagg.run.engine import Engine
from disagg.run.handle import Handle
from disagg.show.report import Failed, LeftOut, Row
from disagg.trace.metrics import percentile
from disagg.trace.results import Run
from disagg.trace.spans import Span

ROUTES = {"bulk": "split", "direct": "streamed", "staged": "staged"}  # route → preset


def gaps_between(run: Run, rows: int, start_ns: int, end_ns: int) -> list[float]:
    """Seconds from step to next step within a window, where both steps hold the residents alone."""
    steps = spans_of(run, "decode", rows)
    pairs = zip(steps, steps[1:], strict=False)
    return [(b.end_ns - a.end_ns) / 1e9 for a, b in pairs
            if b.index == a.index + 1 and a.start_ns >= start_ns and b.end_ns <= end_ns]  # fmt: skip


@contextlib.contextmanager
def company(engine: Engine, residents: list[Request]) -> Iterator[list[Handle]]:
    """Requests that decode already when the block begins, so that no pass mixes them with others; then cancelled."""
    handles = [engine.submit(request) for request in residents]
    while any(len(handle.so_far.token_ids) < 2 and not handle.done for handle in handles):
        time.sleep(0.002)
    try:
        yield handles
    finally:
        for handle in handles:
            handle.cancel()
        for handle in handles:
            handle.result()


def pool(stand: Stand, tokens: int, count: int) -> list[int]:
    """Final lengths of the residents and of those who are handed off beside them."""
    return [stand.scale.context + stand.scale.beside] * stand.scale.residents + [tokens + 2] * count


# ---- beside back-to-back prefills ------------------------------------------------------------------------------------


def split_rows(stand: Stand) -> Iterator[Row]:
    """Alone on the whole GPU, then beside long prefills: shared by streams, and split by SMs."""
    scale, limit = stand.scale, pool(stand, 0, 0)
    options = dict(chunk_tokens=scale.long, max_batch=scale.residents, prefill=3 * scale.long)
    engine = stand.engine("streamed", limit, **options)
    stand.say("decode alone, prefill alone, on the whole device")
    residents = stand.requests(stand.resident_prompts, scale.beside)
    prefills = stand.requests([scale.long] * scale.long_count, 1, seed=1)
    gap, rate = alone(engine, residents, prefills)
    streams = beside(engine, residents, prefills, stand)
    engine = stand.engine("streamed", limit, **options, **stand.split)
    split = beside(engine, residents, prefills, stand)
    how = engine.executor.split_in_words().removeprefix(", ") or "no SM split on this device"
    for name, (gaps, kept), bars in (("", split, (2.0, 0.65)), ("[streams]", streams, (None, None))):
        p50, p99 = (known(percentile(gaps, share)) for share in (0.5, 0.99))
        words = how if not name else "shared by streams alone"
        note = f"{words}: p99 {1e3 * p99:.1f} ms, p50 {1e3 * p50:.1f}; alone p99 {1e3 * gap:.1f} ms"
        yield Row(f"split_gap_p99_over_alone{name}", p99 / gap, "×", bars[0], len(gaps), note)
        note = f"{words}: {kept:.2f} prefills of {scale.long} tokens a second, alone {rate:.2f}"
        yield Row(f"split_prefill_kept{name}", kept / rate, "of alone", bars[1], scale.long_count, note, at_most=False)


def alone(engine: Engine, residents: list[Request], prefills: list[Request]) -> tuple[float, float]:
    """The residents' p99 gap where they decode alone, and passes a second of prefills alone; the second of two runs."""
    for _ in range(2):
        run = engine.serve(residents)
        gap = known(percentile(gaps_between(run, len(residents), 0, run.timeline.end_ns), 0.99))
        rate = rate_of(spans_of(engine.serve(prefills), "prefill"))
    return gap, rate


def rate_of(passes: list[Span]) -> float:
    """Passes a second, back to back."""
    return len(passes) * 1e9 / (passes[-1].end_ns - passes[0].start_ns)


def beside(
    engine: Engine, residents: list[Request], prefills: list[Request], stand: Stand
) -> tuple[list[float], float]:
    """Gaps of the residents while prefills follow each other, and prefills a second; the second of two runs."""
    scale = stand.scale
    for index in range(2):
        stand.say(f"decode beside prefills, {index + 1} of 2")
        with company(engine, residents):
            run = engine.serve(prefills)
    steps = spans_of(run, "decode", scale.residents)
    passes = [span for span in spans_of(run, "prefill") if steps and span.end_ns <= steps[-1].end_ns]
    gaps = gaps_between(run, scale.residents, passes[0].start_ns, passes[-1].end_ns) if passes else []
    if not gaps:
        raise EngineError("the residents did not decode beside a whole prefill: ask them for more tokens")
    return gaps, rate_of(passes)


#: How a GPU is shared: the preset, into how many parts its chunks are cut, and what else is set. The twin is fitted to
#: the turns, whose passes hold no rows.
ARRANGEMENTS: dict[str, tuple[str, int, dict[str, bool]]] = {
    "turns": ("colocated", 1, {"mixed_passes": False}),
    "colocated": ("colocated", 1, {}),
    "chunked": ("colocated", 8, {}),
    "streams": ("streamed", 1, {}),
    "sm_split": ("streamed", 1, {}),
}
SPLITS = (16, 32, 48, 64, 80, 104)  # SMs of decode; prefill has the others


def mixed(stand: Stand) -> list[Request]:
    """Readers who decode, and long prompts that arrive together a little later."""
    readers, prompt, new, count, after_s = stand.scale.mixed
    late = [replace(request, arrival_s=after_s) for request in stand.requests([stand.scale.long] * count, 4, seed=1)]
    return stand.requests([prompt] * readers, new) + late


def side_by_side(stand: Stand) -> Iterator[tuple[str, Run | LeftOut]]:
    """The same work in each arrangement; an arrangement that this device can't have is left out with its reason."""
    for name, (preset, parts, more) in ARRANGEMENTS.items():
        split = stand.split if name == "sm_split" else {}
        yield name, arranged(stand, name, preset, {"chunk_tokens": stand.scale.chunk // parts, **more, **split})


def by_split(stand: Stand) -> Iterator[tuple[int, Run | LeftOut]]:
    """The same work by how many SMs decode has for itself; one run where a device has no SMs."""
    for sms in SPLITS if stand.split else SPLITS[:1]:
        split = {"sm_split": sms} if stand.split else {}
        yield sms, arranged(stand, f"{sms} SMs for decode", "streamed", split)


def arranged(stand: Stand, name: str, preset: str, options: dict[str, int | bool]) -> Run | LeftOut:
    """Readers beside long prompts, served by an engine of this preset with these settings."""
    requests = mixed(stand)
    lengths = [len(request.prompt) + request.max_new_tokens for request in requests]
    try:
        engine = stand.engine(preset, lengths, prefill=sum(lengths), max_batch=len(requests), **options)
        for index in range(2):  # the first run of an engine also pays for start-up
            stand.say(f"readers beside long prompts, {name}, {index + 1} of 2")
            run = engine.serve(requests)
        return run
    except DisaggError as error:
        stand.close()
        return Failed.of(name, error)


# ---- beside hand-offs ------------------------------------------------------------------------------------------------


def gap_rows(stand: Stand) -> Iterator[Row | LeftOut]:
    """Each route: the residents' gaps beside prefills that are handed off, over the same prefills that are not."""
    scale = stand.scale
    residents = stand.requests(stand.resident_prompts, 3 * scale.beside // 5)
    for route, preset in ROUTES.items():
        engine = stand.engine(preset, pool(stand, scale.streamed, scale.hand_offs), max_batch=scale.residents + 16,
                              **stand.split)  # fmt: skip
        found: dict[int, list[float]] = {1: [], 2: []}
        for index in range(1 + scale.rounds):
            stand.say(f"decode beside hand-offs, {route}, round {index} of {scale.rounds}")
            for new in (1, 2) if index % 2 else (2, 1):
                with company(engine, residents):
                    run = engine.serve(stand.requests([scale.streamed] * scale.hand_offs, new, seed=index))
                passes = spans_of(run, "prefill")
                if index:
                    found[new] += gaps_between(run, scale.residents, passes[0].start_ns, passes[-1].end_ns)
        without, with_ = (percentile(found[new], 0.99) for new in (1, 2))
        if not without or not with_:
            yield LeftOut(f"decode_gap_p99[{route}]", "no two steps of all residents lay beside the prefills")
            continue
        p50_without, p50_with = (known(percentile(found[new], 0.5)) for new in (1, 2))
        note = (
            f"{1e3 * with_:.2f} against {1e3 * without:.2f} ms, p50 {1e3 * p50_with:.2f} and {1e3 * p50_without:.2f}; "
            "steps that a newcomer shares left out"
        )
        yield Row(f"decode_gap_p99[{route}]", with_ / without, "of no transfer", 1.05, len(found[2]), note)


def second_token_rows(stand: Stand) -> Iterator[Row]:
    """A burst of short and long prompts on the staged route, by transfer order: without a dial, and on a slow link."""
    scale = stand.scale
    lengths = [scale.prompts[(5 * index) % len(scale.prompts)] for index in range(scale.hand_offs)]
    engine = stand.engine("staged", [length + 8 for length in lengths], prefill=sum(lengths), max_batch=scale.residents,
                          **stand.split)  # fmt: skip
    slow: float | None = None
    for wire in ("", ", slow wire"):
        for policy in ("fcfs", "shortest"):
            stand.say(f"second tokens, {policy}{wire}")
            engine.retune(policy=policy, link=Link(known(slow)) if wire else None)
            gaps: list[float] = []
            for index in range(1 + scale.rounds):
                run = engine.serve(stand.requests(lengths, 8, seed=index))
                if index:
                    gaps += [known(result.second_token_gap_s) for result in run.results]
            if slow is None:
                busy_s = sum(map(seconds, spans_of(run, "prefill")))
                slow = sum(lengths) * stand.model.shape.token_bytes / busy_s / 2  # half of what prefill makes
            p50, p99 = (known(percentile(gaps, share)) for share in (0.5, 0.99))
            note = f"p50 {1e3 * p50:.1f} ms, staged" + (f", {slow / 1e9:.3g} GB/s" if wire else "")
            yield Row(f"second_token_gap_p99[{policy}{wire}]", 1e3 * p99, "ms", n=len(gaps), note=note)
