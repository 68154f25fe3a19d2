"""Right before fast: logits in fp32 and in bfloat16 against the untouched module, and requests cancelled at random.

The error of Hugging Face's own bfloat16 against fp32 is the measure of ours.
"""

import contextlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch

from benchmarks.common import known
from benchmarks.fixed_works import random_ids
from benchmarks.gpu.fixture import Stand
from benchmarks.gpu.paging import LogitChange, checked
from benchmarks.parity import ReferenceAnswer, compare, continuations, forced
from disagg.plan.blocks import blocks_for
from disagg.plan.config import PRESETS
from disagg.plan.errors import EngineError
from disagg.plan.request import Request
from disagg.run.clock import now_ns
from disagg.run.engine import Engine
from disagg.run.handle import Handle
from disagg.run.model.model import Model, load_model
from disagg.run.model.random_models import RANDOM
from disagg.show.report import Row
from disagg.trace.results import Result

EXACT = "llama3-1b"  # a GPU's model in fp32, whatever the stand's shape
EXACT_BLOCK = 16  # tokens: prompts lie in many blocks, and answers grow by some
ROUNDED = ("baseline", "colocated", "split", "streamed", "staged", "paged", "dynamic")
SHARE = 0.3  # of the requests are cancelled
KEPT = 1 / 16  # of the others keep their logits
FAR = 4  # times the largest error that rounding gives at any position; K/V of another text give tens of times as much
LIMIT_S = 150  # for all of them


def rows(stand: Stand) -> Iterator[Row]:
    """In fp32, in bfloat16, and with cancels."""
    yield from exact_rows(stand)
    known = both_references(stand)
    yield from rounded_rows(stand, known)
    yield from cancel_rows(stand, known)


def random_texts(vocab: int, block: int, count: int, longest: int, new: int) -> list[list[int]]:
    """Prompts of random ids, three of them around a block's edge, with `new` more ids each, to be forced."""
    draw = random.Random(0)
    lengths = [block - 1, block, block + 1, *(draw.randint(16, longest) for _ in range(count - 3))]
    return random_ids([length + new for length in lengths], vocab, seed=0)


@contextlib.contextmanager
def opened(stand: Stand, preset: str, model: Model, answers: list[ReferenceAnswer], **changes: Any) -> Iterator[Engine]:
    """An engine with blocks for all of these; where the preset pages, to decode a third at a time. Freed at the end."""
    stand.close()
    dtype = str(model.shape.dtype).removeprefix("torch.")
    config = stand.config(preset, model=model.name, dtype=dtype, **changes)
    needs = [blocks_for(len(a.prompt) + len(a.tokens) + 1, config.block_size) for a in answers]
    decode = sum(needs) if config.host_blocks == 0 else max(sum(needs) // 3, 2 * max(needs))
    with Engine(config.replace(prefill_blocks=sum(needs), decode_blocks=decode), model=model) as engine:
        yield engine
    stand.close()


# ---- fp32 ------------------------------------------------------------------------------------------------------------


def exact_rows(stand: Stand, presets: Iterable[str] = (), changed: str = "", **changes: Any) -> Iterator[Row]:
    """Presets, or all, teacher-forced, with checksums of K/V wherever they stop. `changed` names the changes."""
    check_products()
    stand.close()
    model = load_model(RANDOM + EXACT, device=stand.device) if stand.on_gpu else stand.model
    count, longest, new = stand.scale.exact
    stand.say(f"fp32: the reference of {model.name}, {count} texts one at a time")
    texts = random_texts(model.vocab_size, EXACT_BLOCK, count, longest, new)
    answers = continuations(model.reference(), texts, new)
    for preset in presets or PRESETS:
        stand.say(f"fp32: preset {preset}{changed}")
        with opened(stand, preset, model, answers, block_size=EXACT_BLOCK, verify_kv=True, **changes) as engine:
            parity, config, counts = compare(engine, answers), engine.config, engine.controller.state.counts
        stops = "source, ring and destination" if config.route == "staged" else "source and destination"
        note = f"{model.name}, fp32 without TF32, {count} texts × {new} forced tokens; "
        note += "nothing is handed off" if config.colocated else f"checksums of K/V agree at {stops}"
        note += f"; {counts['spills']} spills, {counts['recomputes']} recomputes" if config.host_blocks else ""
        yield Row(
            f"gpu_parity_max_logit_diff[{preset}{changed}]", parity.largest, "logits", 5e-4, parity.positions, note
        )
        note = f"where the two best are more than 1e-3 apart; {parity.flipped_ties} nearer ties flipped"
        yield Row(f"gpu_parity_wrong_tokens[{preset}{changed}]", parity.wrong, "tokens", 0, parity.positions, note)


def check_products() -> None:
    """EngineError where products in fp32 would be rounded to TF32: neither side would be exact."""
    precision = torch.get_float32_matmul_precision()
    if torch.backends.cuda.matmul.allow_tf32 or precision != "highest":
        raise EngineError(f"products in fp32 may use TF32 here (precision {precision!r}); parity wants all of fp32")


# ---- bfloat16 --------------------------------------------------------------------------------------------------------


class Known(NamedTuple):
    """A model in bfloat16, and what Hugging Face's module says along the same texts: as it is, and upcast to fp32."""

    model: Model
    theirs: list[ReferenceAnswer]
    exact: list[ReferenceAnswer]


def both_references(stand: Stand) -> Known:
    stand.close()
    model = stand.model if stand.on_gpu else load_model(stand.name, dtype="bfloat16")
    count, longest, new = stand.scale.rounded
    stand.say(f"bfloat16: the references, {count} texts one at a time")
    texts, module = random_texts(model.vocab_size, stand.scale.block, count, longest, new), model.reference()
    theirs = continuations(module, texts, new)
    return Known(model, theirs, continuations(module.float(), texts, new))


def rounded_rows(stand: Stand, known: Known) -> Iterator[Row]:
    """Errors of each preset and of Hugging Face's bfloat16 against fp32, over all logits; paged kernels and graphs."""
    theirs = change(known.exact, [answer.logits for answer in known.theirs])
    for preset in ROUNDED:
        stand.say(f"bfloat16: preset {preset}")
        with opened(stand, preset, known.model, known.exact) as engine:
            run = checked(engine.serve(forced(known.exact), record=False))
        ours = change(known.exact, [result.logits for result in run.results])
        note = (
            f"rms {ours.rms:.3g} against {theirs.rms:.3g}, spread of the logits {ours.spread:.3g}; argmax differs from "
            f"fp32's at {ours.wrong} positions, Hugging Face's at {theirs.wrong}; {known.model.name}"
        )
        if preset == "colocated":
            note += "; nothing is handed off: the control of those below"
        yield Row(f"bf16_error_over_hf[{preset}]", ours.rms / theirs.rms, "×", 1.5, ours.positions, note)


def change(exact: list[ReferenceAnswer], logits: list) -> LogitChange:
    """How far these logits lie from the exact ones, text by text."""
    found = LogitChange()
    for answer, given in zip(exact, logits, strict=True):
        for row, other in zip(answer.logits, given, strict=True):
            found.add(row, other)
    return found


# ---- cancels ---------------------------------------------------------------------------------------------------------


class Asked(NamedTuple):
    """A request along a known text, and after how many of its tokens it is cancelled; None: never."""

    request: Request
    answer: ReferenceAnswer  # the reference's
    after: int | None


def work(answers: list[ReferenceAnswer], count: int) -> list[Asked]:
    """Texts in a drawn order, 8 tokens and more of each; cancels at once, with the first token, or somewhere later."""
    draw, asked = random.Random(0), []
    for _ in range(count):
        answer = draw.choice(answers)
        new = draw.randint(8, len(answer.tokens))
        after = draw.choice((0, 1, draw.randrange(new))) if draw.random() < SHARE else None
        kept = after is None and draw.random() < KEPT
        asked.append(Asked(Request(answer.prompt, new, force_ids=answer.tokens[:new], keep_logits=kept), answer, after))
    return asked


def cancel_rows(stand: Stand, known: Known) -> Iterator[Row]:
    """Preset `dynamic`, split by SMs: requests end as they should, with their own logits, and hold nothing."""
    count, together = stand.scale.cancels
    asked = work(known.exact, count)
    stand.say(f"{count} requests, {sum(ask.after is not None for ask in asked)} of them to be cancelled")
    room = known.exact * -(-together // len(known.exact))
    with opened(stand, "dynamic", known.model, room, **stand.split) as engine:
        results = served(engine, asked, together)
        missing = lost(asked, results)  # before the engine is closed, which ends what is open
        pairs = list(zip(asked, results, strict=True))
        errors = torch.cat([off(torch.stack(r.logits), a.answer.logits[: len(r.logits)]) for a, r in pairs if r.logits])
    counts, cancelled = engine.controller.state.counts, [r for r in results if r.finish_reason == "cancelled"]
    stages = Counter(result.stages[-2][1].value for result in cancelled)
    note = (
        f"{len(cancelled)} cancelled ({', '.join(f'{n} {stage}' for stage, n in stages.most_common())}); "
        f"{counts['spills']} spills, {counts['recomputes']} recomputes, {counts['anomalies']} anomalies"
    )
    yield Row("cancel_lost", missing + counts["anomalies"], "requests", 0, count, note)
    held = {pool.name: pool.held for pool in engine.controller.state.pools()}
    yield Row("cancel_leaked_blocks", sum(held.values()), "blocks", 0, count, f"held after all have ended: {held}")
    limit = FAR * max(float(off(a.logits, b.logits).max()) for a, b in zip(known.theirs, known.exact, strict=True))
    short = sum(not told_right(ask, result) for ask, result in pairs)
    note = (
        f"logits off by more than {limit:.3g}, {FAR} × what Hugging Face's are at worst; ours are {errors.max():.3g}; "
        f"and {short} requests with other tokens than they were fed"
    )
    yield Row("cancel_wrong", int((~(errors <= limit)).sum()) + short, "positions", 0, len(errors), note)


def served(engine: Engine, asked: list[Asked], together: int) -> list[Result]:
    """Keeps so many requests open, and cancels those whose moment has come; their results once all have ended."""
    left: list[tuple[Handle, int | None]] = []
    handles, until = [], now_ns() + LIMIT_S * 10**9
    for ask in asked:
        while len(left) >= together and now_ns() < until:
            left = watched(left)
        handles.append(engine.submit(ask.request))
        left = watched([*left, (handles[-1], ask.after)], wait_s=0)
    while left and now_ns() < until:
        left = watched(left)
    return [handle.so_far for handle in handles]


def watched(pairs: list[tuple[Handle, int | None]], wait_s: float = 0.001) -> list[tuple[Handle, int | None]]:
    """Those that have not ended, after the cancels that are due; where all go on, it waits a moment for the oldest."""
    left = []
    for handle, after in pairs:
        if after is not None and len(handle.so_far.token_ids) >= after:
            handle.cancel()
            after = None
        if not handle.done:
            left.append((handle, after))
    if len(left) == len(pairs):
        with contextlib.suppress(TimeoutError):
            left[0][0].result(wait_s)
    return left


def lost(asked: list[Asked], results: list[Result]) -> int:
    """Requests without an end, or with one that was not asked for."""
    fine = [{"length"} if ask.after is None else {"length", "cancelled"} for ask in asked]
    return sum(result.finish_reason not in ends for result, ends in zip(results, fine, strict=True))


def told_right(ask: Asked, result: Result) -> bool:
    """The tokens it was fed, all of them unless it was cancelled."""
    wanted, given = known(ask.request.force_ids), result.token_ids
    return given == wanted[: len(given)] and (len(given) == len(wanted) or result.finish_reason == "cancelled")


def off(logits: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Root of the mean square of the difference, at each position."""
    return (logits.float() - exact).square().mean(dim=-1).sqrt()
