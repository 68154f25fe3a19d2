"""The ladder on one fixed workload: every preset serves the same requests, and gives the same tokens."""

from collections.abc import Callable

from disagg.plan.checks import present
from disagg.plan.config import PRESETS, Config
from disagg.plan.request import Request
from disagg.run.engine import Engine
from disagg.run.model.model import Model
from disagg.show.example_prompts import prompts
from disagg.show.plots.preset_plot import Rung
from disagg.show.report import Row
from disagg.trace.results import Run

LENGTHS = (48, 200, 32, 120, 256, 64, 160, 96)  # tokens of the prompts
NEW_TOKENS, SPACING_S = 24, 0.25


def climb(model: Model, link: float, landed: Callable[[dict[str, Run]], None]) -> dict[str, Run]:
    """Serves the workload on every preset; `landed` gets the runs so far after each."""
    inputs = enumerate(prompts(model, list(LENGTHS)))
    requests = [Request(prompt, NEW_TOKENS, SPACING_S * index, ignore_eos=True) for index, prompt in inputs]
    runs = {}
    for preset in PRESETS:
        with Engine(Config.preset(preset, model=model.name, link=link), model=model) as engine:
            runs[preset] = engine.serve(requests)
        landed(runs)
    return runs


def same_tokens(runs: dict[str, Run]) -> dict[str, bool]:
    """Does each preset give the tokens of the first one?"""
    tokens = {name: [result.token_ids for result in run.results] for name, run in runs.items()}
    reference = next(iter(tokens.values()))
    return {name: found == reference for name, found in tokens.items()}


def line(*cells: str) -> str:
    """A row of the ladder's table, as wide as any other."""
    return "".join(
        (cells[0].ljust(13), *(cell.rjust(wide) for cell, wide in zip(cells[1:], (8, 9, 10, 7, 14), strict=True)))
    )


HEAD = line("preset", "TTFT", "gap 2", "tokens/s", "H", "tokens equal")


def last_rung(runs: dict[str, Run]) -> str:
    """The last run as a line: medians of TTFT and of the second token's gap, tokens/s, H, and same tokens?"""
    name, same = list(same_tokens(runs).items())[-1]
    rung = Rung.of(name, runs[name])
    hidden = "–" if rung.hidden is None else f"{rung.hidden:.2f}"
    times = f"{rung.ttft_s:.2f} s", f"{1e3 * present(rung.second_token_gap_s):.0f} ms"
    return line(name, *times, f"{rung.tokens_per_s:.1f}", hidden, "yes" if same else "NO")


def rows(runs: dict[str, Run]) -> list[Row]:
    found = []
    for name, same in same_tokens(runs).items():
        rung = Rung.of(name, runs[name])
        found += [
            Row(f"ttft_p50_s[{name}]", present(rung.ttft_s), "s"),
            Row(f"second_token_gap_p50_s[{name}]", present(rung.second_token_gap_s), "s"),
            Row(f"tokens_per_s[{name}]", rung.tokens_per_s, "tokens/s"),
            Row(f"tokens_equal[{name}]", same, "", 1, at_most=False),
        ]
        if rung.hidden is not None:
            found.append(Row(f"hidden_fraction[{name}]", rung.hidden, "H"))
    return found
