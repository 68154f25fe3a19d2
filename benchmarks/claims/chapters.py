"""Numbers of chapters that their cells draw and do not print: the same worlds of the virtual clock, asked again.

Notebook: notebooks/04_cpu_paging.ipynb.
"""

from collections.abc import Sequence

from benchmarks.claims.evidence import Finding, digest_of_requests
from disagg.plan.config import Config
from disagg.plan.link import Link
from disagg.plan.request import Request
from disagg.twin.simulate import simulate


def crowded_decode() -> Finding:
    """The fifth of six requests at a decode device that is too small: end of its prefill, and when it could leave."""
    asked = [Request([1] * n, 48, arrival_s=0.15 * i) for i, n in enumerate((40, 90, 16, 120, 20, 75))]
    store = Link(0.05e9, fixed_s=0.05)
    sizes = {"prefill_blocks": 24, "host_blocks": 24, "decode_blocks": 20}
    run = simulate(Config.preset("paged", link=store, layers_per_copy=30, **sizes), asked)
    prefills = [span for span in run.timeline.spans if span.kind == "prefill" and 4 in span.requests]
    left = [copy.start_ns for copy in run.timeline.hand_off(4)]
    times = {"prefill_s": max(span.end_ns for span in prefills) / 1e9, "left_s": max(left) / 1e9}
    return _finding(times, "the six requests of the chapter's first picture", asked)


def _finding(values: dict, words: str, asked: Sequence[Request], baseline: str = "") -> Finding:
    sha256, why = digest_of_requests(asked), "the same on every machine"
    command = "python -m benchmarks claims --check"
    return Finding(values, command, words, sha256, "any: virtual clock", baseline, why_no_interval=why)


CHAPTERS = {"crowded_decode": crowded_decode}
