"""The ablation bench: every rung is what its name says, and verdicts say what the rounds say."""

import pytest
from engine_tools import tiny

from benchmarks import ablation
from benchmarks.ablation import RUNGS, Found, RungWork, compared, config_of, spared
from disagg import Config, Link
from disagg.plan.errors import ConfigError
from disagg.show.report import LeftOut, Row

LITTLE = RungWork(prompt=48, newcomers=2, residents=2, context=16, steps=900, rounds=1, every=30.0)
OFF = {
    "blocking": {"overlap": False}, "one copy": {"layers_per_copy": 4}, "bulk": {"route": "bulk"},
    "direct": {"route": "direct"}, "no transfer": {},
}  # fmt: skip


def test_a_rung_switches_off_one_thing():
    full = vars(config_of("staged", tiny(), LITTLE, None))
    assert (full["route"], full["overlap"], full["layers_per_copy"]) == ("staged", True, 1)
    for rung, off in OFF.items():
        other = vars(config_of(rung, tiny(), LITTLE, None))
        assert {name: value for name, value in other.items() if value != full[name]} == off
    with pytest.raises(ConfigError, match="pinned=False: between CPU cores"):
        config_of("pageable", tiny(), LITTLE, None)
    assert RUNGS.keys() == OFF.keys() | {"staged", "pageable"}
    assert Config(prefill_device="cuda", decode_device="cuda", **RUNGS["pageable"][0]).pinned is False


def test_the_suite_measures_every_rung_and_ends_with_a_verdict(monkeypatch):
    monkeypatch.setattr(ablation, "known", lambda value: 1.0 if value is None else value)  # few gaps, on a slow machine
    rows = list(ablation.suite(lambda text: None, tiny(), LITTLE, Link(fixed_s=1e-3)))
    assert [(row.name, "between CPU cores" in row.reason) for row in rows if isinstance(row, LeftOut)] == [
        ("pageable", True)
    ]
    names = [row.name for row in rows if isinstance(row, Row)]
    for rung in ("staged", *OFF):
        assert f"prefill_ms[{rung}]" in names and f"decode_gap_p99[{rung}]" in names
        moves = rung != "no transfer"
        assert (f"hidden[{rung}]" in names) == (f"second_token_gap_ms[{rung}]" in names) == moves
        assert rung == "staged" or f"off[{rung}]" in names
    assert names[-1] == "staging_spares_decode"


@pytest.mark.parametrize(
    "ours, words",
    [([2.0, 2.2], "longer (× 2.00 to 2.20)"), ([0.5, 0.9], "shorter (× 0.50 to 0.90)"),
     ([0.9, 1.5], "no clear difference (× 0.90 to 1.50)"), ([1.01, 1.3], "no clear difference (× 1.01 to 1.30)")],
)  # fmt: skip
def test_a_difference_is_one_that_every_round_shows(ours, words):
    assert compared(ours, [1.0, 1.0])[1] == words


@pytest.mark.parametrize(
    "direct, head",
    [(2.0, "staged spares decode:"), (0.5, "staged costs decode:"), (1.0, "staged neither spares decode nor")],
)
def test_the_verdict_follows_the_gaps(direct, head):
    at = lambda gap: [Found(1.0, 0.5, 0.1, [gap], [0.5])] * 2  # noqa: E731
    row = spared({"staged": at(1.0), "direct": at(direct), "no transfer": at(1.0)})
    assert row.note.startswith(head) and row.value == 1 / direct
