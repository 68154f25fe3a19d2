"""What each switch of a hand-off is worth: one off at a time, and what decode notices of it ("does staging spare it?").

The work is fixed: long prompts arrive, one after the other, beside requests that decode. All rungs serve it in turn,
round after round, on engines that are open at once, so that a machine that changes its speed does so for all of them.
On the CPU the link is dialled; on a GPU it is the memory that there is.
"""

import contextlib
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from benchmarks.common import Say, known, seconds, spans_of
from benchmarks.fixed_works import random_ids
from benchmarks.gpu.sharing import company
from disagg.plan.blocks import blocks_for
from disagg.plan.config import Config
from disagg.plan.errors import ConfigError
from disagg.plan.link import Link
from disagg.plan.request import Request
from disagg.run.engine import Engine
from disagg.run.model.layer_time import compute_of_a_layer
from disagg.run.model.model import Model, load_model
from disagg.show.report import LeftOut, Row
from disagg.trace.metrics import percentile
from disagg.trace.results import Run

FULL = "staged"  # asynchronous, pinned, by layer, two hops
COMPUTE_OVER_HOP = 2.0  # of the dialled link: a layer's two hops take what its compute takes
CLEAR = 0.02  # a difference is one where it is larger than this in every round: by chance in 1 of 16 cases of five

#: What each rung switches off, and in words; all layers in one copy keep both hops, `bulk` is the route with one.
RUNGS: dict[str, tuple[dict[str, Any], str]] = {
    FULL: ({}, "asynchronous, pinned, by layer, two hops"),
    "pageable": ({"pinned": False}, "pageable host memory"),
    "blocking": ({"overlap": False}, "blocking hand-off"),
    "one copy": ({}, "all layers in one copy, two hops"),
    "bulk": ({"route": "bulk"}, "in bulk after prefill, one hop"),
    "direct": ({"route": "direct"}, "by layer, one hop"),
    "no transfer": ({}, "prompts that ask for one token: nothing is handed off"),
}


@dataclass(frozen=True)
class RungWork:
    prompt: int  # tokens of a newcomer, one chunk
    newcomers: int
    residents: int
    context: int  # tokens of a resident's prompt
    steps: int  # that residents could decode; they are cancelled before
    rounds: int = 5
    every: float = 4.0  # passes that would fit between two arrivals: decode is alone in between, also where one blocks


ON_CPU = RungWork(prompt=256, newcomers=4, residents=4, context=32, steps=900)
ON_GPU = RungWork(prompt=2048, newcomers=10, residents=8, context=256, steps=3000)


class Found(NamedTuple):
    """One round of one rung, in seconds."""

    prefill: float  # median pass
    hidden: float | None  # median H; None where nothing is handed off
    second: float | None  # median second-token gap
    beside: list[float]  # decode's gaps while a newcomer is prefilled or handed off
    alone: list[float]  # and while none is

    def gap(self, share: float) -> float:
        return known(percentile(self.beside, share))


def config_of(rung: str, model: Model, work: RungWork, link: Link | None) -> Config:
    """ConfigError where this machine has nothing that the rung could switch off."""
    on_gpu = model.device.type == "cuda"
    places = {"prefill_device": "cuda:0", "decode_device": "cuda:0", "dtype": "bfloat16", "compile": False}
    size = 256 if on_gpu else 16
    resident, newcomer = blocks_for(work.context + work.steps + 1, size), blocks_for(work.prompt + 2, size)
    sizes = {"prefill_blocks": max(resident, 2 * newcomer), "block_size": size, "chunk_tokens": work.prompt}
    sizes |= {"decode_blocks": work.residents * (resident + 1) + 2 * newcomer, "layers_per_copy": 1}
    whole = {"layers_per_copy": model.layers} if rung == "one copy" else {}
    fields = {"model": model.name, "link": link, **(places if on_gpu else {}), **sizes, **whole, **RUNGS[rung][0]}
    return Config.preset(FULL, **fields)


def measure(engine: Engine, work: RungWork, every_s: float, new: int, seed: int) -> Found:
    """One round: newcomers ask for `new` tokens, 2 or, where nothing is to be handed off, 1."""
    vocab = int(engine.model.vocab_size)
    texts = random_ids([work.context] * work.residents + [work.prompt] * work.newcomers, vocab, seed)
    residents = [Request(ids, work.steps, ignore_eos=True) for ids in texts[: work.residents]]
    arriving = enumerate(texts[work.residents :], 1)
    with company(engine, residents):
        run = engine.serve([Request(ids, new, every_s * index, ignore_eos=True) for index, ids in arriving])
    hidden = [found.hidden for index in range(work.newcomers) if (found := run.overlap(index)).hidden is not None]
    second = [result.second_token_gap_s for result in run.results if result.second_token_gap_s is not None]
    h, second_s = (statistics.median(values) if values else None for values in (hidden, second))
    return Found(statistics.median(map(seconds, spans_of(run, "prefill"))), h, second_s, *gaps(run, work.residents))


def gaps(run: Run, residents: int) -> tuple[list[float], list[float]]:
    """From step to step, where both hold the residents alone: while a newcomer is prefilled or its K/V travel, and
    while none is. Gaps that are partly both are left out of the second."""
    windows = [(span.start_ns, span.end_ns) for kind in ("prefill", "copy") for span in spans_of(run, kind)]
    steps, beside, alone = spans_of(run, "decode"), list[float](), list[float]()
    for a, b in zip(steps, steps[1:], strict=False):
        if b.index == a.index + 1 and a.count == b.count == residents:
            met = any(start < b.end_ns and a.end_ns < end for start, end in windows)
            (beside if met else alone).append((b.end_ns - a.end_ns) / 1e9)
    return beside, alone


def rows_of(rung: str, found: list[Found]) -> Iterator[Row]:
    """A rung's rows: medians of its rounds, and the gaps of all of them."""
    n, words = len(found), RUNGS[rung][1]
    yield Row(f"prefill_ms[{rung}]", 1e3 * statistics.median(each.prefill for each in found), "ms", n=n, note=words)
    if hidden := [each.hidden for each in found if each.hidden is not None]:
        yield Row(f"hidden[{rung}]", statistics.median(hidden), "H", n=n)
    if second := [each.second for each in found if each.second is not None]:
        yield Row(f"second_token_gap_ms[{rung}]", 1e3 * statistics.median(second), "ms", n=n)
    beside, alone = ([gap for each in found for gap in getattr(each, name)] for name in ("beside", "alone"))
    for share in (0.5, 0.99):
        with_, without = known(percentile(beside, share)), known(percentile(alone, share))
        note = f"{1e3 * with_:.2f} against {1e3 * without:.2f} ms alone ({len(alone)} gaps)"
        yield Row(f"decode_gap_p{100 * share:.0f}[{rung}]", with_ / without, "of alone", n=len(beside), note=note)


def compared(ours: list[float], theirs: list[float]) -> tuple[float, str]:
    """The median of ours over theirs, round by round, and whether every round says the same."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    word = "no clear difference"
    if min(ratios) > 1 + CLEAR or max(ratios) < 1 - CLEAR:
        word = "longer" if min(ratios) > 1 else "shorter"
    return statistics.median(ratios), f"{word} (× {min(ratios):.2f} to {max(ratios):.2f})"


def verdict(rung: str, found: list[Found], full: list[Found]) -> Row:
    """What switching off one thing does, in a sentence: to prefill, to the second token, to decode's gaps."""
    parts = {"prefill": compared([f.prefill for f in found], [f.prefill for f in full])[1]}
    if None not in (seconds := [f.second for f in found]):
        parts["second-token gap"] = compared(list(map(known, seconds)), [known(f.second) for f in full])[1]
    parts["decode's gap p50"] = compared([f.gap(0.5) for f in found], [f.gap(0.5) for f in full])[1]
    ratio, parts["p99"] = compared([f.gap(0.99) for f in found], [f.gap(0.99) for f in full])
    note = f"{RUNGS[rung][1]}: " + ", ".join(f"{name} {words}" for name, words in parts.items())
    return Row(f"off[{rung}]", ratio, "× staged's gap p99", n=len(found), note=note)


def spared(found: dict[str, list[Found]]) -> Row:
    """Does staging spare decode? Its gaps beside a hand-off of two hops, of one, and beside none."""
    words, ratio = {}, 0.0
    for share in (0.5, 0.99):
        ours, direct, none = ([each.gap(share) for each in found[rung]] for rung in (FULL, "direct", "no transfer"))
        ratio, words[share] = compared(ours, direct)
        words[share] += f", against none {compared(ours, none)[1]}"
    spares = {"shorter": "staged spares decode", "longer": "staged costs decode"}
    head = spares.get(words[0.99].partition(" ")[0], "staged neither spares decode nor costs it")
    note = f"{head}: beside a staged hand-off, against a direct one, its gap p99 is {words[0.99]}; p50 {words[0.5]}"
    return Row("staging_spares_decode", ratio, "× direct's gap p99", n=len(found[FULL]), note=note)


def suite(
    say: Say, model: Model | None = None, work: RungWork | None = None, link: Link | None = None
) -> Iterator[Row | LeftOut]:
    """Rows rung by rung, then the verdicts. A rung that this machine can't switch is left out, with the reason."""
    on_gpu = torch.cuda.is_available() if model is None else model.device.type == "cuda"
    if model is None:
        say("the model")
        model = load_model("random-llama3-8b", dtype="bfloat16", device="cuda:0") if on_gpu else load_model("smollm2")
    work = work or (ON_GPU if on_gpu else ON_CPU)
    c = compute_of_a_layer(model, work.prompt)
    if link is None and not on_gpu:
        link = Link.ratio(COMPUTE_OVER_HOP).against(c, model.shape.layer_token_bytes * work.prompt)
    found: dict[str, list[Found]] = {}
    with contextlib.ExitStack() as stack:
        engines: dict[str, Engine] = {}
        for rung in RUNGS:
            try:
                config = config_of(rung, model, work, link)
            except ConfigError as error:
                yield LeftOut(rung, str(error))
                continue
            say(f"an engine: {rung}")
            engines[rung], found[rung] = stack.enter_context(Engine(config, model=model)), []
        for index in range(1 + work.rounds):  # the first one warms up
            for rung, engine in engines.items():
                say(f"{rung}, round {index} of {work.rounds}")
                once = measure(engine, work, work.every * model.layers * c, 1 if rung == "no transfer" else 2, index)
                found[rung] += [once] if index else []
    for rung, each in found.items():
        yield from rows_of(rung, each)
    yield from (verdict(rung, each, found[FULL]) for rung, each in found.items() if rung != FULL)
    yield spared(found)
