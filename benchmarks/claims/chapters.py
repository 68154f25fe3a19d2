"""Numbers of chapters that their cells draw and do not print: the same worlds of the virtual clock, asked again.

Notebooks: notebooks/04_cpu_paging.ipynb, notebooks/05_dynamic_batching.ipynb.
"""

from collections.abc import Sequence

from benchmarks.claims.evidence import Finding, digest_of_requests
from benchmarks.common import known
from disagg.plan.config import Config
from disagg.plan.link import Link
from disagg.plan.request import Request
from disagg.show.example_prompts import long_tail
from disagg.show.plots.bin_plot import Binned, even_bounds
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


def eight_bins() -> Finding:
    """Padding that is left with eight bins for a long tail of lengths."""
    tail = long_tail(64, longest=1200)
    asked = [Request([7] * length, max_new_tokens=32) for length in tail]
    config = Config.preset("colocated", chunk_tokens=16384, max_batch=64, decode_blocks=4096, bins=even_bounds(tail, 8))
    return _finding({"waste": Binned.of(simulate(config, asked)).waste}, "64 rows of long-tailed lengths", asked)


def target() -> Finding:
    """Under a target of 150 ms: second tokens that come later than it, and the slowest."""
    asked = [Request([7] * 32, max_new_tokens=48, arrival_s=0.1 * i) for i in range(24)]
    run = simulate(Config.preset("dynamic", itl_target_s=0.150), asked)
    seconds = [known(result.second_token_gap_s) for result in run.results]
    values = {"late": sum(gap > 0.150 for gap in seconds), "slowest_s": max(seconds)}
    return _finding(values, "24 requests within a few seconds", asked)


def _finding(values: dict, words: str, asked: Sequence[Request], baseline: str = "") -> Finding:
    sha256, why = digest_of_requests(asked), "the same on every machine"
    command = "python -m benchmarks claims --check"
    return Finding(values, command, words, sha256, "any: virtual clock", baseline, why_no_interval=why)


CHAPTERS = {"crowded_decode": crowded_decode, "eight_bins": eight_bins, "target": target}
