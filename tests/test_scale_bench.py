"""The bench of scale, on a small scale."""

import pytest

from benchmarks import scale
from disagg.show.report import LeftOut

FEW = {"WORKERS": {4: 20}, "EVENTS": 200, "REQUESTS": 60, "PROMPTS": 4}


def test_every_event_of_many_workers_is_timed():
    row = scale.controller_row(4, 20, 400)
    assert row.name == "controller_us_per_event[4]" and row.value > 0 and row.n == 400
    assert all(kind in row.note for kind in ("Landed", "Prefilled", "Stepped", "Submit"))


def test_no_client_of_the_door_is_lost(monkeypatch):
    pytest.importorskip("uvicorn", reason="without the extra `serve`")
    for name, value in FEW.items():
        monkeypatch.setattr(scale, name, value)
    monkeypatch.setattr(scale, "agreement_rows", lambda say: iter([LeftOut("client_agrees", "in a test")]))
    rows = {row.name: row for row in scale.suite(lambda words: None)}
    assert [rows[f"serve_soak[{name}]"].value for name in ("lost", "wrong", "leaked")] == [0, 0, 0]
    assert rows["serve_soak[lost]"].note == "6 bad, refused, 18 left, 36 right"


def test_without_guidellm_its_row_says_how_to_get_it(monkeypatch):
    monkeypatch.delenv("GUIDELLM", raising=False)
    monkeypatch.setattr(scale.shutil, "which", lambda name: None)
    [row] = scale.agreement_rows(lambda words: None)
    assert isinstance(row, LeftOut) and "pip install guidellm" in row.reason
