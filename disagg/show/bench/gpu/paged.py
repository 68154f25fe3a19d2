"""A decode pool of a quarter of the need: K/V go to pinned host memory and come back. How fast, and is it right?"""

import statistics
from collections.abc import Iterator
from dataclasses import replace

import torch

from disagg.plan.request import Request
from disagg.plan.results import Run
from disagg.show.bench.gpu.stand import Stand
from disagg.show.bench.rows import Row

KEPT = 4  # requests whose logits are compared
LEAST = 50  # spills, and fetches, without which the row says nothing


def rows(stand: Stand) -> Iterator[Row]:
    """The same requests with all the room they want, then with a quarter of it."""
    count, prompt, new = stand.scale.paged
    total = [prompt + new] * count
    host = count * -(-(prompt + new + 1) // stand.scale.block)
    engine = stand.engine("paged", total, prefill=max(count * prompt // 4, 2 * (prompt + new)), max_batch=count,
                          host_blocks=host, **stand.split)  # fmt: skip
    room = engine.config.decode_blocks
    requests = stand.requests([prompt] * count, new)
    stand.say(f"paged: all of {room} blocks")
    engine.serve([replace(request, max_new_tokens=min(16, new)) for request in requests])
    whole = engine.serve(requests)
    peak = whole.peak_blocks["decode 0"]
    stand.say("paged: logits with all the room, together and alone")
    forced = [forced_request(r, result.token_ids) for r, result in zip(requests, whole.results, strict=True)]
    for index in range(KEPT, count):
        forced[index] = replace(forced[index], keep_logits=False)
    together, alone = logits(engine.serve(forced)), logits(engine.serve(forced[:KEPT]))
    quarter = max(peak // 4, -(-(prompt + new + 1) // stand.scale.block))
    stand.say(f"paged: {quarter} of {peak} blocks")
    engine.retune(decode_blocks=quarter)
    tight = engine.serve(requests)
    squeezed = logits(engine.serve(forced))
    fast, slow = whole.metrics().tokens_per_s, tight.metrics().tokens_per_s
    note = f"{slow:,.0f} against {fast:,.0f} tokens/s; {quarter} of {peak} blocks; {count} requests of {prompt} + {new}"
    yield Row("paged_over_full", slow / fast, "×", 0.5, count, note, at_most=False)
    choices = sorted(choice.tokens for choice in tight.choices)
    note = f"contexts preempted: {choices[0]} to {choices[-1]} tokens" if choices else "nothing was preempted"
    for name in ("spills", "fetches", "recomputes"):
        bar = None if name == "recomputes" else LEAST
        yield Row(f"paged_{name}", tight.counts.get(name, 0), "", bar, 1, note, at_most=False)
    yield parity_row(together, alone, squeezed)


def forced_request(request: Request, ids: list[int]) -> Request:
    return replace(request, force_ids=ids, keep_logits=True)


def logits(run: Run) -> list[torch.Tensor]:
    """[new tokens, vocab] of each request that kept them."""
    bad = [result for result in run.results if result.finish_reason != "length"]
    if bad:
        raise RuntimeError(f"request {bad[0].request} ended as {bad[0].finish_reason}: {bad[0].error}")
    return [torch.stack([row.float().cpu() for row in r.logits]) for r in run.results if r.logits]


def parity_row(together, alone, squeezed) -> Row:
    """What paging changes in forced logits, over what other batch mates change: rounding alone, no paging."""
    paged, control = ([rms(a - b) for a, b in zip(side, together, strict=True)] for side in (squeezed, alone))
    floor = 1e-6 * rms(together[0])
    ratio = statistics.mean(paged) / max(statistics.mean(control), floor)
    wrong = sum(int((a.argmax(-1) != b.argmax(-1)).sum()) for a, b in zip(squeezed, together, strict=True))
    control_wrong = sum(int((a.argmax(-1) != b.argmax(-1)).sum()) for a, b in zip(alone, together, strict=True))
    positions = sum(len(x) for x in together)
    note = (
        f"rms of the change ÷ that of the same requests served alone; spread {rms(together[0]):.3g}; argmax differs at "
        f"{wrong} positions, control {control_wrong}"
    )
    return Row("paged_parity[over control]", ratio, "×", 1.5, positions, note)


def rms(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt())
