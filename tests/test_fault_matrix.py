"""The fault matrix on the real engine, its first column: the command runs all of it. And that it can go red."""

import pytest

from benchmarks.robustness import engine_soak, fault_matrix
from disagg.monitor.fault_injection import Injection
from disagg.monitor.fault_plan import FAULTS, FaultPlan
from disagg.run.engine import Engine
from disagg.run.model.model import load_model


@pytest.fixture(scope="module")
def known():
    model = load_model("tiny")
    return model, fault_matrix.reference(model)


def test_every_fault_ends_well(known):
    found = list(fault_matrix.cells(lambda text: None, ["paged"], most=1))
    bad = [cell for cell in found if cell.lost or cell.wrong or cell.blocks or cell.threads]
    assert not bad
    struck = {(cell.kind, cell.fault) for cell in found if cell.struck}
    possible = {(kind, fault) for kind, faults in FAULTS.items() for fault in faults}
    never = {("paged", "cancel")}  # the simulator's
    assert struck == possible - never


def test_a_failure_that_no_fault_explains_is_lost(known, monkeypatch):
    model, expected = known
    monkeypatch.setattr(Injection, "hurt", property(lambda self: set(), lambda self, value: None), raising=False)
    assert fault_matrix.run_cell(model, "colocated", "prefill", "fail", 1, expected).lost > 0


def test_wrong_tokens_are_seen(known):
    model, expected = known
    wrong = [[token + 1 for token in tokens] for tokens in expected]
    assert fault_matrix.run_cell(model, "colocated", "notice", "twice", 1, wrong).wrong == len(expected)


def test_without_checksums_a_flipped_byte_fails_no_request(known):
    model, expected = known
    cell = fault_matrix.config_of("staged", verify_kv=False)
    plan = FaultPlan({("copy", number): "flip" for number in range(1, 60)})
    with Engine(cell, model, faults=plan) as engine:
        run = fault_matrix.served(engine)
    assert plan.struck["copy flip"] > 20
    assert [r.finish_reason for r in run.results] == ["length"] * len(expected), "nobody looked, so nothing failed"


def test_a_short_soak():
    rows = {row.name: row for row in engine_soak.rows(lambda text: None, 48)}
    assert rows["soak_lost"].value == 0 and rows["soak_doubled"].value == 0
    assert "cancelled" in rows["soak_lost"].note and "struck" in rows["soak_lost"].note
