"""`python -m benchmarks soak`: its rows, what it says of a seed that fails, and one seed run by itself."""

import json

import pytest
from typer.testing import CliRunner

from benchmarks.robustness import soak
from benchmarks.robustness.detectors_cost import rows as cost_rows
from benchmarks.robustness.model_checker import Explored
from benchmarks.robustness.random_scenarios import build
from benchmarks.suites import app
from disagg.monitor.checked_simulation import CheckedSimulation


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The small world and the real engine have their own tests."""
    monkeypatch.setattr(soak, "explore", lambda world: Explored(10, 20, 1))
    monkeypatch.setattr(soak.fault_matrix, "rows", lambda say: iter(()))
    monkeypatch.setattr(soak.engine_soak, "rows", lambda say, requests: iter(()))
    monkeypatch.setattr(soak.detectors_cost, "rows", lambda say: iter(()))


def rows(seeds=3) -> dict:
    return {row.name: row for row in soak.suite(lambda text: None, seeds)}


def test_the_rows_and_their_bars():
    found = rows()
    assert list(found) == ["small_world_states", "sim_breaches", "sim_seeds_per_s", "sim_never_happened"]
    assert found["small_world_states"].value == 10
    assert (found["sim_breaches"].value, found["sim_breaches"].bar_text, found["sim_breaches"].n) == (0, "≤ 0", 3)
    assert found["sim_seeds_per_s"].bar_text == "≥ 100" and found["sim_seeds_per_s"].value > 0
    assert "cancel fetching" in found["sim_never_happened"].note


def test_a_failed_seed_is_counted_reported_and_named(monkeypatch):
    finish = CheckedSimulation.finish

    def failing(self):
        assert len(self.jobs) != len(soak_jobs), "on purpose [here]"
        return finish(self)

    soak_jobs = build(1).jobs
    monkeypatch.setattr(CheckedSimulation, "finish", failing)
    said = []
    found = {row.name: row for row in soak.simulated_rows(said.append, 3)}
    assert found["sim_breaches"].value >= 1 and found["sim_breaches"].met is False
    assert "rerun: python -m benchmarks soak --seed " in found["sim_breaches"].note
    assert any("seed 1: AssertionError: on purpose" in text for text in said)


def test_the_command_writes_a_file(tmp_path):
    path = tmp_path / "soak.json"
    done = CliRunner().invoke(app, ["soak", "--seeds", "2", "--json", str(path)])
    assert done.exit_code == 1 and "sim_never_happened" in done.output.splitlines()[-1], "of two worlds that is so"
    assert [row["name"] for row in json.loads(path.read_text())["rows"]][:2] == ["small_world_states", "sim_breaches"]


def test_one_seed_by_itself(monkeypatch):
    done = CliRunner().invoke(app, ["soak", "--seed", "5"])
    assert done.exit_code == 0 and done.output.startswith("seed 5: ") and "all ended well" in done.output
    monkeypatch.setattr(CheckedSimulation, "finish", lambda self: 1 / 0)
    done = CliRunner().invoke(app, ["soak", "--seed", "5"])
    assert done.exit_code == 1 and "rerun: python -m benchmarks soak --seed 5" in done.output


def test_the_cost_of_detectors_is_their_share_of_a_run():
    (row,) = cost_rows(lambda text: None, "tiny")
    assert row.name == "detectors_cost_pct" and row.bar == 3 and 0 < row.value < 100
    assert row.n == 16 and "512 tokens" in row.note
