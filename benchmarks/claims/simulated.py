"""The report's numbers on two L4 GPUs, as the twin predicts them: which link, which rival, how many rows.

Llama-3-8B in bfloat16. Its times come from data sheets and from what one H200 was measured to reach (twin/hardware.py);
this pair was not measured. Notebooks: notebooks/03_layer_streaming.ipynb, notebooks/05_dynamic_batching.ipynb,
notebooks/06_twin_and_claims.ipynb.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from benchmarks.claims.evidence import Finding, digest_of_requests
from benchmarks.common import known
from disagg.plan.config import Config
from disagg.plan.link import PRESETS, Link
from disagg.plan.request import Request
from disagg.trace.results import Run
from disagg.twin.simulate import simulate
from disagg.twin.traces import Arrival
from disagg.twin.workloads import Lengths, poisson

PAIR = "2xL4"
HARDWARE = "2 × NVIDIA L4 by data sheet, predicted"
COMMAND = "python -m benchmarks claims --only {}"

PROMPTS = (512, 128, 2048)  # the first is the one that is quoted
ROWS = (4, 32)
SPREADS = (0.0, 0.2)  # of lengths, log-normal; what the first gives is quoted
FAST, SEEDS = 0.6, (1, 2)  # requests a second; the first seed is quoted
RATES = (0.06, 0.1, 0.15, 0.25, 0.4, 0.5, 0.6, 0.7)
TTFT_LIMIT_S, TPOT_LIMITS_MS = 16.0, (88, 150)
PRESETS_COMPARED = ("colocated", "dynamic", "two_colocated")


def on_pair(preset: str, **changes: Any) -> Config:
    """A preset on one L4 where it needs one, else on both."""
    second = "cuda:0" if preset in ("baseline", "colocated") else "cuda:1"
    devices = {"prefill_device": "cuda:0", "decode_device": second}
    return Config.preset(preset, model="random-llama3-8b", dtype="bfloat16", **devices, **changes)


# ---- 60 and 96 % -----------------------------------------------------------------------------------------------------


def _alike(arrivals: Iterable[Arrival]) -> list[Request]:
    """Requests whose tokens are all alike: only their number counts here."""
    return [Request([7] * one.prompt_tokens, one.new_tokens, one.at_s) for one in arrivals]


def prompt_of(tokens: int) -> list[Request]:
    return [Request([7] * tokens, 4)]


def handed_off(preset: str, tokens: int, gb_s: float) -> Run:
    """One prompt over a link of so many GB/s."""
    return simulate(on_pair(preset, link=Link(gb_s * 1e9)), prompt_of(tokens), hardware=PAIR)


def link_for(hidden: float, tokens: int) -> Run:
    """The run over the slowest link on which H reaches a share, by halving between 1 MB/s and 1 TB/s."""
    low, high = 1e-3, 1e3
    for _ in range(36):
        middle = (low * high) ** 0.5
        enough = known(handed_off("streamed", tokens, middle).overlap(0).hidden) >= hidden
        low, high = (low, middle) if enough else (middle, high)
    return handed_off("streamed", tokens, high)


def overlap() -> Finding:
    """Which link hides 60 % of a hand-off, and which 96 %; and what PCIe hides."""
    found: dict[str, list[float]] = {}
    for percent in (60, 96):
        runs = [link_for(percent / 100, tokens) for tokens in PROMPTS]
        laws = [known(run.law(0)) for run in runs]
        found[f"wire[{percent}]"] = [run.config.links[0].bandwidth for run in runs]
        found[f"ratio[{percent}]"] = [law.compute_s / law.hops_s[0] for law in laws]
    pcie = PRESETS["pcie4x16"]
    for preset in ("split", "streamed"):
        runs = [handed_off(preset, tokens, pcie / 1e9) for tokens in PROMPTS]
        found[f"pcie_hidden[{preset}]"] = [known(run.overlap(0).hidden) for run in runs]
    words = f"one prompt of {PROMPTS[0]} tokens, layer by layer; the interval over prompts of {min(PROMPTS)} to "
    asked = [request for tokens in PROMPTS for request in prompt_of(tokens)]
    return _finding("report-overlap", found, f"{words}{max(PROMPTS)}", asked, "none: H is a share", pcie=pcie)


# ---- 20x and 4x ------------------------------------------------------------------------------------------------------


def crowd(spread: float) -> list[Request]:
    """64 requests at nearly one instant: prompts of 256 tokens, answers of 64, or around that."""
    arrivals = poisson(64, per_s=1000, prompt=Lengths(256, spread), new=Lengths(64, spread))
    return _alike(arrivals)


@cache
def crowded(preset: str, rows: int, spread: float) -> float:
    """Tokens a second for the crowd, with at most so many rows in a decode step."""
    run = simulate(on_pair(preset, max_batch=rows), crowd(spread), hardware=PAIR)
    return run.metrics().tokens_per_s


def over(preset: str, rows: int, rival: str, rival_rows: int) -> list[float]:
    """The gain over a rival, for each spread."""
    return [crowded(preset, rows, spread) / crowded(rival, rival_rows, spread) for spread in SPREADS]


def gain() -> Finding:
    """Tokens a second over one request at a time, and over the fair rival, by rows that may share a step."""
    found: dict[str, list[float]] = {}
    for rows in ROWS:
        found |= {f"{preset}[{rows}]": over(preset, rows, "baseline", 1) for preset in PRESETS_COMPARED}
        found[f"over_rival[{rows}]"] = over("dynamic", rows, "two_colocated", rows)
    words = "64 requests at once, each of 256 tokens and 64 new ones; the interval down to lengths of spread 0.2"
    asked = [request for spread in SPREADS for request in crowd(spread)]
    return _finding("report-20x", found, words, asked, "`baseline`: one request at a time on one L4")


# ---- 4x as goodput ---------------------------------------------------------------------------------------------------


def readers(per_s: float, seed: int) -> list[Request]:
    """60 requests at a rate, enough for a queue to show: prompts around 6,000 tokens, answers around 64."""
    arrivals = poisson(60, per_s, prompt=Lengths(6000, 0.3), new=Lengths(64, 0.3), seed=seed)
    return _alike(arrivals)


@cache
def within(preset: str, per_s: float, seed: int) -> dict[int, float]:
    """Share of the readers that keep the limit on TTFT and one on TPOT, by the latter in ms."""
    run = simulate(on_pair(preset), readers(per_s, seed), hardware=PAIR)
    return {limit: known(run.metrics(TTFT_LIMIT_S, limit / 1e3).attainment) for limit in TPOT_LIMITS_MS}


#: By so much less must the rival be asked so that nine of ten keep the narrow limit, as of the split at FAST.
GAIN = 3.4


def fair() -> Finding:
    """Which share keeps its limits: `streamed` at a rate, its rival at parts of it, once under a wider limit."""
    narrow, wide = TPOT_LIMITS_MS
    asked = {"streamed": ("streamed", FAST, narrow), "narrow": ("two_colocated", FAST / GAIN, narrow),
             "tenth": ("two_colocated", FAST / 10, narrow), "half": ("two_colocated", FAST / 2, wide)}  # fmt: skip
    rates = {"rate": FAST, "rate_half": FAST / 2, "rate_narrow": FAST / GAIN, "rate_tenth": FAST / 10, "gain": GAIN}
    found = {
        f"met[{name}]": [within(preset, per_s, seed)[limit] for seed in SEEDS]
        for name, (preset, per_s, limit) in asked.items()
    }
    words = f"60 Poisson arrivals, prompts around 6,000 tokens, answers around 64, TTFT within {TTFT_LIMIT_S:g} s"
    requests = [request for seed in SEEDS for request in readers(FAST, seed)]
    return _finding("report-4x-goodput", found, words, requests, "`two_colocated`: the same two GPUs", **rates)


def goodput_curves() -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Shares within the limits over the rate, by limit and preset."""
    return {
        f"TPOT within {limit} ms": {
            preset: [(rate, within(preset, rate, SEEDS[0])[limit]) for rate in RATES]
            for preset in ("streamed", "two_colocated", "colocated")
        }
        for limit in TPOT_LIMITS_MS
    }


def _finding(
    claim: str, found: Mapping[str, list[float]], words: str, asked: Sequence[Request], baseline: str, **chosen: float
) -> Finding:
    """The first of each list is quoted, and all of them are its interval; `chosen` has no interval."""
    values = {**chosen, **{name: values[0] for name, values in found.items()}}
    interval = {name: (min(values), max(values)) for name, values in found.items()}
    return Finding(values, COMMAND.format(claim), words, digest_of_requests(asked), HARDWARE, baseline, interval)


TWIN = {"overlap": overlap, "gain": gain, "fair": fair}
