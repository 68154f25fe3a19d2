"""The fault matrix on the real engine, its first column: the command runs all of it. And that it can go red."""

import pytest

from benchmarks.robustness import engine_soak, fault_matrix
from disagg.monitor.fault_injection import Injection
from disagg.monitor.fault_plan import FAULTS, FaultPlan
from disagg.plan.link import LaneRole
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


@pytest.mark.parametrize("case", ["mixed passes", "blocking"])
def test_every_fault_ends_well_where_passes_are_mixed_or_hand_offs_block(known, case):
    found = list(fault_matrix.cells(lambda text: None, [case], most=1))
    assert not [cell for cell in found if cell.lost or cell.wrong or cell.blocks or cell.threads]
    assert {"prefill fail", "worker die"} <= {f"{cell.kind} {cell.fault}" for cell in found if cell.struck}


@pytest.mark.parametrize("fault", ["fail", "flip", "stall"])
def test_a_copy_that_parks_ends_well_under_each_fault(known, fault, monkeypatch):
    """A hand-off's: its request fails, as on the way to decode; the others, and what is parked beside it, go on."""
    model, expected = known
    parks, copy = [], Injection.copy

    def noting(self, one):
        if one.lane.role is LaneRole.PARK:
            parks.append(self.plan.counts["copy"] + 1)
        return copy(self, one)

    monkeypatch.setattr(Injection, "copy", noting)
    fault_matrix.counted(model, "parking")
    number = parks[len(parks) // 2]
    cell = fault_matrix.run_cell(model, "parking", "copy", fault, number, expected)
    assert cell.struck and not (cell.lost or cell.wrong or cell.blocks or cell.threads), cell


def test_each_case_of_the_matrix_does_what_it_is_for(known):
    model, _ = known
    seen = {}
    for case in fault_matrix.MORE:
        with Engine(fault_matrix.config_of(case, watchdog_s=60.0), model) as engine:
            run = engine.serve(fault_matrix.requests())
        spans = run.timeline.spans
        passes = {(span.place, span.start_ns) for span in spans if span.kind == "prefill"}
        mixed = any((span.place, span.start_ns) in passes for span in spans if span.kind == "decode")
        seen[case] = engine.controller.state.counts["parked"] > 1, mixed, any(span.waits_ns for span in spans)
    assert seen["parking"][0] and seen["mixed passes"][1] and seen["blocking"][2], seen


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
