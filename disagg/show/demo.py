"""The ladder on one fixed workload: every preset serves the same requests, and gives the same tokens."""

from collections.abc import Callable
from dataclasses import dataclass

from disagg.plan.config import PRESETS, Config
from disagg.plan.request import Request
from disagg.plan.results import Run
from disagg.run.engine import Engine
from disagg.run.model import Model
from disagg.show.bench.rows import Row
from disagg.show.bench.workloads import prompts

LENGTHS = (48, 200, 32, 120, 256, 64, 160, 96)  # tokens of the prompts
NEW_TOKENS, SPACING_S = 24, 0.25


@dataclass(frozen=True)
class Rung:
    """One preset's figures on the demo's workload."""

    preset: str
    ttft_s: float
    second_token_gap_s: float
    tokens_per_s: float
    hidden: float | None
    same_tokens: bool

    def rows(self) -> list[Row]:
        rows = [
            Row(f"ttft_p50_s[{self.preset}]", self.ttft_s, "s"),
            Row(f"second_token_gap_p50_s[{self.preset}]", self.second_token_gap_s, "s"),
            Row(f"tokens_per_s[{self.preset}]", self.tokens_per_s, "tokens/s"),
            Row(f"tokens_equal[{self.preset}]", self.same_tokens, "", 1, at_most=False),
        ]
        if self.hidden is not None:
            rows.append(Row(f"hidden_fraction[{self.preset}]", self.hidden, "H"))
        return rows


def requests(model: Model) -> list[Request]:
    inputs = enumerate(prompts(model, list(LENGTHS)))
    return [Request(prompt, NEW_TOKENS, SPACING_S * index, ignore_eos=True) for index, prompt in inputs]


def climb(
    model: Model, link, progress: Callable[[str], None] = lambda preset: None
) -> tuple[list[Rung], dict[str, Run]]:
    """Serves the workload on every preset; `progress` hears each preset's name when it is done."""
    rungs, runs, tokens = [], {}, None
    for preset in PRESETS:
        with Engine(Config.preset(preset, model=model.name, link=link), model=model) as engine:
            run = runs[preset] = engine.serve(requests(model))
        found = [result.token_ids for result in run.results]
        tokens = tokens or found
        metrics = run.metrics()
        rungs.append(
            Rung(
                preset, metrics.ttft_s.p50, metrics.second_token_gap_s.p50, metrics.tokens_per_s,
                run.overlap().hidden, found == tokens,
            )
        )  # fmt: skip
        progress(preset)
    return rungs, runs
