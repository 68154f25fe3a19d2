"""The engine under its detectors: a breach breaks it in words; `why` answers; its log replays to the same commands."""

import pytest
from engine_tools import LIMIT_S, before, held_at, lengths, opened, small

from disagg.plan.controller import Controller
from disagg.plan.errors import EngineError
from disagg.plan.request import Stage
from disagg.plan.transfer import Transfer
from disagg.run.core import EngineCore
from disagg.run.host_lane import HostLane


def test_a_violation_breaks_the_engine_in_words(monkeypatch):
    """A transfer that pins nothing: a cancel frees what its copy still reads."""
    gate = held_at(monkeypatch, HostLane, "_move")
    monkeypatch.setattr(Transfer, "touch", lambda self, table: None)
    with opened(small(), broken=True) as engine:
        handles = [engine.submit(request) for request in lengths((40, 9), (20, 9))]
        gate.wait()
        engine.watch.until_stage(0, Stage.HANDING_OFF)
        handles[0].cancel()
        for handle in handles:
            assert handle.result(LIMIT_S).error.startswith("InUse: ")
        gate.open()
        assert (engine.breach.detector, engine.breach.request) == ("InUse", 0)
        assert "request 0 was cancelled" in engine.breach.events[-1]
        with pytest.raises(EngineError, match="must be rebuilt: InUse: .* is freed while a pass or a copy uses it"):
            engine.submit(lengths((5, 5))[0])
        assert "request 0" in engine.why(0)


def test_commands_of_a_violation_are_not_carried_out(monkeypatch):
    with opened(small(), broken=True) as engine:
        obeyed = []
        before(monkeypatch, EngineCore, "_obey", lambda self, command: obeyed.append(command))
        monkeypatch.setattr(engine.detectors, "settle", lambda: engine.detectors._report("Drain", "by hand"))
        with pytest.raises(EngineError, match="must be rebuilt: Drain: by hand"):
            engine.submit(lengths((9, 2))[0])
        assert obeyed == []


def test_why_of_a_running_engine(monkeypatch):
    gate = held_at(monkeypatch, HostLane, "_move")
    with opened(small()) as engine:
        handle = engine.submit(lengths((40, 9))[0])
        gate.wait()
        engine.watch.until_stage(0, Stage.HANDING_OFF)
        events = len(engine.watch.events)
        text = engine.why(0)
        gate.open()
        assert text.startswith("request 0 (handing off) waits for ") and " for direct transfer, holds " in text
        assert text.endswith("pairs have landed") and events <= len(engine.watch.events)
        handle.result(LIMIT_S)
        assert engine.why(handle) == engine.why(0) == "request 0 is not open: it has ended, or never came"
    assert engine.why(0) == "request 0 is not open: it has ended, or never came"


@pytest.mark.parametrize("preset", ["two_colocated", "split", "streamed", "staged", "paged", "dynamic"])
def test_a_fresh_controller_gives_the_same_commands_for_the_engines_events(monkeypatch, preset):
    """The log is the controller's only input: no clock, no order of threads beside it."""
    changes = {"decode_blocks": 10, "host_blocks": 8} if preset in ("paged", "dynamic") else {}
    with opened(small(preset, chunk_tokens=48, **changes)) as engine:
        commands = []
        before(monkeypatch, type(engine.detectors), "obey", lambda self, now, command: commands.append(command))
        run = engine.serve(lengths((40, 12), (20, 3), (50, 40), (9, 48), (33, 48)))
        engine.watch.until_idle()
        log, shape = list(run.log), engine.model.shape
    heard = len(engine.watch.events)
    assert len(log) > 20 and heard + len(engine.recorder.probed) >= len(log)
    pads = engine.attention_path.pads
    fresh = Controller(engine.config, layers=shape.layers, token_bytes=shape.token_bytes, pads=pads)
    replayed = [command for now, event in log for command in fresh.handle(event, now)]
    assert replayed == commands[: len(replayed)] and len(replayed) > 20
