"""A decode pool of a quarter of the need: K/V go to pinned host memory and come back. How fast, and is it right?"""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch

from benchmarks.gpu.fixture import Stand
from disagg.plan.errors import EngineError
from disagg.show.report import Row
from disagg.trace.results import Result, Run

LEAST = 50  # spills, and fetches, without which the row says nothing


def rows(stand: Stand) -> Iterator[Row]:
    """Short prompts whose answers grow by many blocks: with all the room they want, then with a quarter of it."""
    count, prompt, new = stand.scale.paged
    each = -(-(prompt + new + 1) // stand.scale.block)
    engine = stand.engine("paged", [prompt + new] * count, prefill=max(count * prompt // 4, 2 * (prompt + new)),
                          max_batch=count, host_blocks=max(each, count * each // 2), **stand.split)  # fmt: skip
    kept = sorted({1, count // 2, count - 2, count - 1})  # the last ones are preempted first
    requests = stand.requests([prompt] * count, new)
    for index in kept:
        requests[index] = replace(requests[index], keep_logits=True)
    stand.say(f"paged: all of {engine.config.decode_blocks} blocks")
    engine.serve([replace(request, max_new_tokens=min(16, new)) for request in requests])
    whole = checked(engine.serve(requests))
    for index in kept:  # from here on they get the same tokens, so that logits can be compared
        requests[index] = replace(requests[index], force_ids=whole.results[index].token_ids)
    stand.say("paged: the control, without the others")
    alone = checked(engine.serve([requests[index] for index in kept]))
    peak = whole.peak_blocks["decode 0"]
    quarter = max(peak // 4, each)
    stand.say(f"paged: {quarter} of {peak} blocks")
    engine.retune(decode_blocks=quarter)
    tight = checked(engine.serve(requests))
    fast, slow = whole.metrics().tokens_per_s, tight.metrics().tokens_per_s
    note = f"{slow:,.0f} against {fast:,.0f} tokens/s; {quarter} of {peak} blocks; {count} requests of {prompt} + {new}"
    yield Row("paged_over_full", slow / fast, "×", 0.5, count, note, at_most=False)
    choices = sorted(choice.tokens for choice in tight.choices)
    note = f"contexts preempted: {choices[0]} to {choices[-1]} tokens" if choices else "nothing was preempted"
    for name in ("spills", "fetches", "recomputes"):
        bar = None if name == "recomputes" else LEAST
        yield Row(f"paged_{name}", tight.counts.get(name, 0), "", bar, 1, note, at_most=False)
    moved = {choice.request for choice in tight.choices}
    struck = sum(tight.results[index].request in moved for index in kept)
    pairs = [(whole.results[i], tight.results[i], alone.results[place]) for place, i in enumerate(kept)]
    yield parity_row(pairs, f"{struck} of {len(kept)} compared requests were preempted")


def checked(run: Run) -> Run:
    """The run, where every request came to its end."""
    bad = [result for result in run.results if result.finish_reason != "length"]
    if bad:
        raise EngineError(f"request {bad[0].request} ended as {bad[0].finish_reason}: {bad[0].error}")
    return run


def parity_row(answers: list[tuple[Result, Result, Result]], note: str) -> Row:
    """What paging changes in logits, over what other batch mates change: rounding alone, no paging."""
    paged, control = LogitChange(), LogitChange()
    for whole, tight, alone in answers:
        for row, other, by_itself in zip(whole.logits, tight.logits, alone.logits, strict=True):
            paged.add(row, other)
            control.add(row, by_itself)
    ratio = paged.rms / max(control.rms, 1e-6 * control.spread)
    note = (
        f"rms {paged.rms:.3g} against {control.rms:.3g} for the same requests served alone, spread "
        f"{control.spread:.3g}; argmax differs at {paged.wrong} positions, control {control.wrong}; {note}"
    )
    return Row("paged_parity[over control]", ratio, "×", 1.5, paged.positions, note)


class LogitChange:
    """How far rows of logits lie from others, in all."""

    def __init__(self) -> None:
        self.positions, self.wrong, self._squares, self._own = 0, 0, 0.0, 0.0

    def add(self, row: torch.Tensor, other: torch.Tensor) -> None:
        row, other = row.float(), other.float()
        self.positions += 1
        self.wrong += int(row.argmax() != other.argmax())
        self._squares += float((row - other).square().mean())
        self._own += float(row.var())

    @property
    def rms(self) -> float:
        return math.sqrt(self._squares / self.positions)

    @property
    def spread(self) -> float:
        return math.sqrt(self._own / self.positions)
