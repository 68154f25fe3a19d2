"""The engines to beat, on the same prompts in the same process: nano-vllm, and Hugging Face's ways of generating."""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace

from benchmarks import nanovllm, peers
from benchmarks.common import known, ratio_row
from benchmarks.fixed_works import work_a, work_b
from benchmarks.gpu.fixture import Stand
from disagg.plan.request import Request
from disagg.run.engine import Engine
from disagg.show.report import LeftOut, Row
from disagg.trace.metrics import Percentiles, percentile

Side = Callable[[list[Request]], float]
COLOCATED = {"A": 1.1, "B": 1.2}  # × nano-vllm's rate, by work
SMALL_COLOCATED = {"A": 1.3, "B": 1.3}  # of a small shape
DYNAMIC = 0.85  # of nano-vllm's rate on work A, where prefill and decode share the GPU by SMs


def work(stand: Stand, name: str, seed: int) -> list[Request]:
    """Work A or B, with ids that no other seed gives: engines remember prompts."""
    make, sizes = (work_a, stand.scale.work_a) if name == "A" else (work_b, stand.scale.work_b)
    return make(stand.model.vocab_size, seed, *sizes)


def round_seed(index: int) -> int:
    return 10 + index


def lengths(stand: Stand, name: str) -> list[int]:
    return [len(request.prompt) + request.max_new_tokens for request in work(stand, name, 0)]


def alternate(stand: Stand, name: str, ours: Side, theirs: Side, rounds: int) -> list[tuple[float, float]]:
    """New tokens a second of both, on the same prompts; who goes first alternates, and new ids every round."""
    pairs = []
    for index in range(rounds):
        stand.say(f"work {name}, round {index + 1} of {rounds}")
        requests = work(stand, name, round_seed(index))
        if index % 2:
            second = theirs(requests)
            pairs.append((ours(requests), second))
        else:
            pairs.append((ours(requests), theirs(requests)))
    return pairs


def warm_pairs(stand: Stand, name: str, ours: Side, theirs: Side) -> list[tuple[float, float]]:
    """As `alternate`, after short answers to the same work on both sides."""
    for side in (ours, theirs):
        side(short(work(stand, name, seed=1)))
    return alternate(stand, name, ours, theirs, stand.scale.rounds)


def rate(engine: Engine) -> Side:
    """Without a timeline, which no peer keeps either."""
    return lambda requests: engine.serve(requests, record=False).metrics().tokens_per_s


def dynamic(stand: Stand) -> Engine:
    """For work A, split by SMs: passes of twice the usual size, and room for all prompts."""
    prompts = sum(len(request.prompt) for request in work(stand, "A", 0))
    return stand.engine("dynamic", lengths(stand, "A"), prefill=2 * prompts, max_batch=64,
                        chunk_tokens=2 * stand.scale.chunk, **stand.split)  # fmt: skip


def short(requests: list[Request], new: int = 16) -> list[Request]:
    """The same prompts, warm-up lengths of answers."""
    return [replace(request, max_new_tokens=min(new, request.max_new_tokens)) for request in requests]


# ---- nano-vllm -------------------------------------------------------------------------------------------------------


def nanovllm_rows(stand: Stand) -> Iterator[Row | LeftOut]:
    """Colocated against it on work A and B; then one GPU split by SMs on work A. All of both in this process."""
    shape, scale, names, small = stand.shape, stand.scale, ("A", "B"), stand.shape == "qwen3-0.6b"
    bars = SMALL_COLOCATED if small else COLOCATED
    if missing := nanovllm.reason_missing(stand.model):
        for name in (*(f"colocated_over_nanovllm[{shape},{name}]" for name in names), "dynamic_over_nanovllm"):
            yield LeftOut(name, missing)
        return
    wanted = lengths(stand, "B")
    room, free = nanovllm.room_for_each(stand.model, 5 * sum(wanted) // 4)
    chunk = 8 * scale.chunk  # tokens of a pass, as many as nano-vllm's own
    engine = stand.engine("colocated", wanted, share=room / free, max_batch=len(wanted), chunk_tokens=chunk)
    stand.say("nano-vllm: weights, warm-up, graphs")
    peer = nanovllm.NanoVllm(stand.model, room)
    try:
        theirs = lambda requests: peer.serve(requests).tokens_per_s  # noqa: E731
        for name in names:
            pairs = warm_pairs(stand, name, rate(engine), theirs)
            what = f"work {name}, ours greedy without a timeline, theirs sampled as in its bench"
            yield ratio_row(f"colocated_over_nanovllm[{shape},{name}]", pairs, bars[name], what)
        engine = dynamic(stand)
        rate(engine)(short(work(stand, "A", seed=2)))
        pairs = alternate(stand, "A", rate(engine), theirs, scale.rounds)
        gaps = engine.serve(work(stand, "A", seed=3), record=False).metrics().itl_s
        other = Percentiles.of(peer.serve(work(stand, "A", seed=4)).gaps_s)
        what = f"work A, {gap_words(gaps)}; nano-vllm's {gap_words(other)}"
        what = f"{what}; {stand.split['sm_split']} SMs for decode, {shape}"
        yield ratio_row("dynamic_over_nanovllm", pairs, 0.6 if small else DYNAMIC, what)
    finally:
        peer.close()


def gap_words(gaps: Percentiles) -> str:
    return f"gaps p50 {1e3 * known(gaps.p50):.1f}, p99 {1e3 * known(gaps.p99):.1f} ms"


# ---- Hugging Face ----------------------------------------------------------------------------------------------------


def generate_rows(stand: Stand) -> Iterator[Row]:
    """Preset `dynamic`, split by SMs, against `generate_batch` and against a queue before `generate`."""
    scale = stand.scale
    engine = dynamic(stand)
    stand.say("the untouched module")
    module = stand.model.reference()
    ours = rate(engine)
    ours(short(work(stand, "A", seed=1)))
    for name, bar, kept in (("", 5, False), ("[kept manager]", None, True)):
        theirs = lambda requests, kept=kept: peers.batched(module, requests, kept=kept)  # noqa: E731
        theirs(work(stand, "A", seed=1))
        pairs = alternate(stand, "A", ours, theirs, scale.rounds)
        what = "its manager kept from call to call" if kept else "a call as people write it, the second and third"
        yield ratio_row(f"dynamic_over_generate_batch{name}", pairs, bar, f"work A, paged SDPA, {what}")
    peers.release(module)
    tokens_per_s = statistics.median(pair[0] for pair in pairs)
    requests = work(stand, "A", seed=5)
    answers = answers_by_length(stand, module, requests)
    alone = statistics.mean(answers[len(r.prompt)].all_s for r in requests)
    single = requests[0].max_new_tokens / alone
    note = f"work A: {tokens_per_s:,.0f} against {single:.1f} new tokens/s ({scale.one_by_one} answers of each length)"
    yield Row("dynamic_over_generate", tokens_per_s / single, "×", 100, len(requests), note, at_most=False)
    every_s = requests[0].max_new_tokens / (0.8 * tokens_per_s)
    spaced = [replace(request, arrival_s=every_s * index) for index, request in enumerate(requests)]
    stand.say(f"a request every {1e3 * every_s:.0f} ms")
    mine = known(engine.serve(spaced, record=False).metrics().ttft_s.p50)
    queued = known(percentile(peers.queue_waits(spaced, answers), 0.5))
    note = f"{len(spaced)} requests, one every {1e3 * every_s:.1f} ms: {queued:.1f} against {mine:.3f} s; "
    note += "the queue before `generate` is summed up from how long its answers take alone"
    yield Row("generate_ttft_p50_over_ours", queued / mine, "×", 100, len(spaced), note, at_most=False)


def answers_by_length(stand: Stand, module: peers.Module, requests: list[Request]) -> dict[int, peers.PeerAnswer]:
    """`generate` alone on a few requests of each prompt length, medians, after one to warm up."""
    peers.answer(module, requests[0])
    found = {}
    for length in sorted({len(request.prompt) for request in requests}):
        stand.say(f"`generate`, prompts of {length} tokens")
        same = [request for request in requests if len(request.prompt) == length][: stand.scale.one_by_one]
        times = [peers.answer(module, request) for request in same]
        found[length] = peers.PeerAnswer(*(statistics.median(part) for part in zip(*times, strict=True)))
    return found
