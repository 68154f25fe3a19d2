"""What this machine cannot measure: recordings and measured rows of others, and the twin's prediction for two L4."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.claims import claims_file, measured, simulated
from benchmarks.fixed_works import work_a
from benchmarks.report.cell import (
    AS_WRITTEN,
    FAST,
    NOT_KEPT,
    ONE_BY_ONE,
    ONE_SETTING,
    OURS,
    RIVALS,
    SLOW,
    TARGETS,
    THROUGHPUT,
    TTFT,
    About,
    Cell,
    attention_of,
    gains,
    gains_of,
)
from disagg.plan.request import Request
from disagg.show import recordings
from disagg.trace.results import Run
from disagg.twin.simulate import simulate

RECORDED_ON = "2026-11-26"  # when figures/data was written; recordings keep no date


# ---- recorded --------------------------------------------------------------------------------------------------------


def recorded_overlap() -> Iterator[Cell]:
    """The dials of figures/data at which H was about as the report's, on the staged route of one H200."""
    runs = measured.staged_runs()
    for claim, dial in ((SLOW, 4.0), (FAST, 0.5)):
        run = runs[dial]
        about = About("recorded", AS_WRITTEN, f"{run.config.model}: one prompt of 2,048 tokens through host memory",
                      f"{run.machine}; {RECORDED_ON}", attention_of(run))  # fmt: skip
        yield about.overlap(claim, run, by_law=True)


def recorded_gains() -> Iterator[Cell]:
    """TTFT of readers beside long prompts on two H200, over the rival; tokens a second of one H200 over `generate`."""
    split, rival = measured.there(recordings.pair("crowd")).values()
    words = f"{split.config.model}: {len(split.results)} requests, readers beside long prompts"
    of_pair = About("recorded", AS_WRITTEN, words, f"{split.machine}; {RECORDED_ON}", attention_of(split))
    both = gains_of({"split": split, RIVALS[0]: rival}, of_pair, over=RIVALS[0], ours="split")
    yield next(cell for cell in both if cell.claim == TTFT)
    values, of_one = _rows("gpu", AS_WRITTEN, "work A")
    gain = values["dynamic_over_generate"]
    batched = gain / values["dynamic_over_generate_batch"]
    yield of_one.cell(THROUGHPUT, gain, {"generate_batch": batched}, over="generate")


def recorded_together() -> Iterator[Cell]:
    """The ladder of `make demo` on two cores: one work, one link, every preset."""
    values, about = _rows("demo", ONE_SETTING, "8 prompts of 32 to 256 tokens, 24 new ones each")
    link_gb_s = claims_file.load().measured["demo"]["workload"]["link_gb_s"]
    share = {name: values[f"hidden_fraction[{name}]"] for name in (OURS, "split")}
    for claim in (SLOW, FAST):
        yield about.cell(claim, share[OURS], {"split": share["split"]}, link_gb_s=link_gb_s)
    waits, rates = ({name: values[f"{row}[{name}]"] for name in (ONE_BY_ONE, *RIVALS, OURS)}
                    for row in ("ttft_p50_s", "tokens_per_s"))  # fmt: skip
    yield from gains(waits, rates, about)


def _rows(name: str, tried: str, words: str) -> tuple[Mapping[str, float], About]:
    """A file of figures/measured, and what claims.toml has about it."""
    about = claims_file.load().measured[name]
    found = measured.measured(claims_file.ROOT, name, about)
    setting = f"{about['workload']['model']}: {words}"
    return found.values, About("recorded", tried, setting, found.hardware, NOT_KEPT)


# ---- by the twin -----------------------------------------------------------------------------------------------------


def by_twin(tried: str, setting: str) -> About:
    return About("twin", tried, f"random-llama3-8b: {setting}", simulated.HARDWARE, "none ran")


def twin_overlap() -> Iterator[Cell]:
    tokens = simulated.PROMPTS[0]
    about = by_twin(AS_WRITTEN, f"one prompt of {tokens} tokens, layer by layer")
    for claim in (SLOW, FAST):
        run = simulated.link_for(TARGETS[claim], tokens)
        whole = simulated.handed_off("split", tokens, run.config.links[0].bandwidth / 1e9)
        yield about.overlap(claim, run, whole, by_law=True)


def twin_sides(requests: list[Request], presets: Sequence[str], **changes: Any) -> dict[str, Run]:
    rows = {name: {} if name == ONE_BY_ONE else {"max_batch": simulated.ROWS[-1]} for name in presets}
    return {
        name: simulate(simulated.on_pair(name, **rows[name], **changes), requests, hardware=simulated.PAIR)
        for name in presets
    }


def twin_gain() -> Iterator[Cell]:
    requests = simulated.crowd(0.0)
    words = f"{len(requests)} prompts of 256 tokens at once, 64 new ones each, {simulated.ROWS[-1]} rows in a step"
    yield from gains_of(twin_sides(requests, (ONE_BY_ONE, *RIVALS, OURS)), by_twin(AS_WRITTEN, words))


def twin_together() -> Iterator[Cell]:
    """Work A on one configuration; the two overlaps at the two speeds that one prompt needs."""
    requests = work_a(10_000, 0)
    sides = twin_sides(requests, (ONE_BY_ONE, *RIVALS))
    about = by_twin(ONE_SETTING, f"work A, {simulated.ROWS[-1]} rows in a step")
    for claim in (SLOW, FAST):
        link = simulated.link_for(TARGETS[claim], simulated.PROMPTS[0]).config.links[0]
        found = twin_sides(requests, (OURS, "split"), link=link)
        yield about.overlap(claim, found[OURS], found["split"])
    yield from gains_of(sides | found, about)
