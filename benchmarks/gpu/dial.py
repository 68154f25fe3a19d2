"""The dial of the link under load: does a copy land when it should while both workers are busy?"""

import statistics
from collections.abc import Iterator

from benchmarks.common import known
from benchmarks.gpu.fixture import Stand
from benchmarks.gpu.sharing import company, pool
from disagg.plan.link import Link
from disagg.show.report import Row
from disagg.trace.metrics import percentile

LATE_US = 5  # that a dial below 200 µs may be off; above, 5 %
PER_COPY = 3  # prefills without a hand-off before each one with


def rows(stand: Stand) -> Iterator[Row]:
    """One block a copy, on a link of fixed cost; the residents decode before the dial is turned."""
    scale = stand.scale
    engine = stand.engine("streamed", pool(stand, scale.block, scale.dial_copies), max_batch=scale.residents + 16,
                          layers_per_copy=1,
                          **stand.split)  # fmt: skip
    for index, us in enumerate(scale.dials_us):
        stand.say(f"a dial of {us} µs a layer, both workers busy")
        engine.retune(link=None)
        busy = stand.requests([scale.streamed] * PER_COPY * scale.dial_copies, 1, seed=2 * index)
        moved = stand.requests([scale.block] * scale.dial_copies, 2, seed=2 * index + 1)
        mixed = [r for i, one in enumerate(moved) for r in (*busy[PER_COPY * i : PER_COPY * (i + 1)], one)]
        with company(engine, stand.requests(stand.resident_prompts, scale.beside)) as residents:
            engine.retune(link=Link(fixed_s=us / 1e6))
            run = engine.serve(mixed)
            busy_still = sum(not handle.done for handle in residents)
        copies = [s for s in run.timeline.spans if s.kind == "copy"]
        off = [100 * abs((s.end_ns - s.start_ns) / (1e3 * us) - 1) for s in copies]
        median_us = statistics.median(s.end_ns - s.start_ns for s in copies) / 1e3
        note = f"p95 of copies; p50 {percentile(off, 0.5):.1f} %, median copy {median_us:.1f} µs; "
        note += f"{busy_still} of {len(residents)} residents decoded to the end"
        bar = 5.0 if us >= 200 else 100 * LATE_US / us
        yield Row(f"dial_error_pct[{us}]", known(percentile(off, 0.95)), "%", bar, len(copies), note)
    engine.retune(link=None)
