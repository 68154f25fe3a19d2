"""Two GPUs against one with nano-vllm or Hugging Face, and against the same two colocated, on traces of arrivals."""

import statistics
from collections.abc import Iterator
from pathlib import Path

from benchmarks import nanovllm, peers
from benchmarks.common import known, ratio_row
from benchmarks.fixed_works import random_ids
from benchmarks.gpu.fixture import Stand
from benchmarks.gpu.rivals import gap_words, lengths, rate, round_seed, short, warm_pairs, work
from disagg.plan.errors import ConfigError
from disagg.plan.request import Request
from disagg.run.engine import Engine
from disagg.show.report import LeftOut, Row
from disagg.trace.metrics import Metrics, Percentiles
from disagg.twin.traces import Arrival, read_trace

PRESET = "streamed"
RIVAL = "two_colocated"
TTFT_LIMIT_S, TPOT_LIMIT_S = 0.5, 0.025  # within which an answer is a good one
LOADS = (0.3, 0.6, 0.9)  # of the prompt tokens that one GPU alone reads


def engine_for(stand: Stand, wanted: list[int], prompts: int, preset: str = PRESET) -> Engine:
    """With room for all; passes as large as nano-vllm's."""
    return stand.engine(preset, wanted, prefill=prompts, max_batch=min(256, len(wanted)),
                        chunk_tokens=4 * stand.scale.chunk)  # fmt: skip


# ---- one GPU ---------------------------------------------------------------------------------------------------------


def nanovllm_rows(stand: Stand) -> Iterator[Row | LeftOut]:
    """Work A and B, in total and per GPU; then the same prompts on the two GPUs as two that do both."""
    shape, names = stand.shape, ("A", "B")
    if missing := nanovllm.reason_missing(stand.model):
        yield LeftOut("pair_over_nanovllm", missing)
        return
    wanted = lengths(stand, "B")
    prompts = max(sum(len(request.prompt) for request in work(stand, name, 0)) for name in names)
    engine = engine_for(stand, wanted, prompts)
    room, _ = nanovllm.room_for_each(stand.model, 5 * sum(wanted) // 4)
    stand.say("nano-vllm: weights, warm-up, graphs")
    peer, found = nanovllm.NanoVllm(stand.model, room), {}
    try:
        theirs = lambda requests: peer.serve(requests).tokens_per_s  # noqa: E731
        for name in names:
            pairs = found[name] = warm_pairs(stand, name, rate(engine), theirs)
            gaps = engine.serve(work(stand, name, seed=3), record=False).metrics().itl_s
            other = Percentiles.of(peer.serve(work(stand, name, seed=4)).gaps_s)
            per_gpu = statistics.median(a / b for a, b in pairs) / 2
            what = f"work {name}; {per_gpu:.2f} a GPU; {gap_words(gaps)}; nano-vllm's {gap_words(other)}"
            yield ratio_row(f"pair_over_nanovllm[{shape},{name}]", pairs, 1.3, what)
        ours = rate(engine_for(stand, wanted, prompts, RIVAL))
        for name in names:
            ours(short(work(stand, name, seed=1)))
            pairs = [(ours(work(stand, name, round_seed(i))), other) for i, (_, other) in enumerate(found[name])]
            yield ratio_row(f"two_colocated_over_nanovllm[{shape},{name}]", pairs, None, f"work {name}, two engines")
    finally:
        peer.close()


def generate_rows(stand: Stand) -> Iterator[Row]:
    """Work A against `generate_batch` on one GPU."""
    prompts = sum(len(request.prompt) for request in work(stand, "A", 0))
    engine = engine_for(stand, lengths(stand, "A"), prompts)
    stand.say("the untouched module")
    module = stand.model.reference().to(stand.prefill_device)  # where its thread looks for memory, whatever it is given
    pairs = warm_pairs(stand, "A", rate(engine), lambda requests: peers.batched(module, requests))
    peers.release(module)
    yield ratio_row("pair_over_generate_batch", pairs, 8, "work A, paged SDPA, a call as people write it")


# ---- the same two GPUs -----------------------------------------------------------------------------------------------


def trace_rows(stand: Stand, traces: list[Path]) -> Iterator[Row | LeftOut]:
    """Slices of traces at three rates: `streamed` over `two_colocated`, in throughput, TTFT, gaps and goodput."""
    if not traces:
        yield LeftOut("pair_over_two_colocated", "no --trace was given: Azure's CSV or Mooncake's JSON lines")
        return
    slices = {path.name.partition(".")[0].removeprefix("AzureLLMInferenceTrace_"): cut(stand, path) for path in traces}
    sides: dict[tuple, Metrics] = {}
    speed = prefill_speed(stand)
    for preset in (PRESET, RIVAL):
        for name, slice_ in slices.items():
            wanted = [one.prompt_tokens + one.new_tokens for one in slice_]
            engine = engine_for(stand, wanted, 4 * max(wanted), preset)
            engine.serve(short(arriving(stand, slice_, 1e9), new=4), record=False)
            for load in LOADS:
                per_s = load * speed / statistics.mean(one.prompt_tokens for one in slice_)
                stand.say(f"trace {name}, {preset}, {per_s:.1f} requests a second")
                run = engine.serve(arriving(stand, slice_, per_s, seed=round(10 * load)), record=False)
                sides[preset, name, load] = run.metrics(TTFT_LIMIT_S, TPOT_LIMIT_S)
    for name, slice_ in slices.items():
        for load in LOADS:
            ours, theirs = sides[PRESET, name, load], sides[RIVAL, name, load]
            per_s = load * speed / statistics.mean(one.prompt_tokens for one in slice_)
            note = f"{per_s:.1f} requests a second; {PRESET}: {in_words(ours)}; {RIVAL}: {in_words(theirs)}"
            yield Row(f"pair_goodput_over_two_colocated[{name},{load:g}]", goodput(ours) / max(goodput(theirs), 1e-9),
                      "×", None, ours.requests, note, at_most=False)  # fmt: skip


def prefill_speed(stand: Stand) -> float:
    """Prompt tokens a second of one GPU that does nothing else."""
    scale = stand.scale
    engine = engine_for(stand, [scale.streamed + 1] * scale.long_count, scale.streamed * scale.long_count)
    for seed in range(2):
        metrics = engine.serve(stand.requests([scale.streamed] * scale.long_count, 1, seed), record=False).metrics()
    return scale.streamed * scale.long_count / metrics.seconds


def cut(stand: Stand, path: Path) -> list[Arrival]:
    """The first arrivals that the stand's model and scale can take; their own spacing."""
    longest = min(stand.model.context_limit, stand.scale.trace_longest)
    count = stand.scale.trace_requests
    found = [a for a in read_trace(path) if a.prompt_tokens and a.prompt_tokens + a.new_tokens <= longest][:count]
    if len(found) < count:
        raise ConfigError(f"{path} has {len(found)} requests of up to {longest} tokens; {count} are needed")
    return found


def arriving(stand: Stand, slice_: list[Arrival], per_s: float, seed: int = 0) -> list[Request]:
    """Random prompts of the slice's lengths, at its spacing, stretched to so many requests a second."""
    texts = random_ids([one.prompt_tokens for one in slice_], stand.model.vocab_size, seed=100 + seed)
    stretch = len(slice_) / per_s / max(slice_[-1].at_s - slice_[0].at_s, 1e-9)
    return [Request(ids, max(1, one.new_tokens), stretch * (one.at_s - slice_[0].at_s), ignore_eos=True)
            for ids, one in zip(texts, slice_, strict=True)]  # fmt: skip


def goodput(metrics: Metrics) -> float:
    """Good answers a second."""
    return known(metrics.attainment) * metrics.requests / metrics.seconds


def in_words(metrics: Metrics) -> str:
    p50, p99 = known(metrics.ttft_s.p50), known(metrics.ttft_s.p99)
    return (
        f"{metrics.tokens_per_s:,.0f} tokens/s, TTFT p50 {1e3 * p50:.0f}, p99 {1e3 * p99:.0f} ms, "
        f"{gap_words(metrics.itl_s)}, {goodput(metrics):.2f} good answers/s ({metrics.attainment:.0%} within TTFT "
        f"{TTFT_LIMIT_S:g} s and TPOT {1e3 * TPOT_LIMIT_S:g} ms)"
    )
