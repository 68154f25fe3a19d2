"""Each detector raises under its own name, from a log written by hand, and is silent on clean runs."""

import pytest
from controller_harness import DECODE, PREFILL, ControllerHarness, make_job

from disagg.monitor.block_monitor import Batch
from disagg.monitor.monitor import InvariantViolation, Monitor
from disagg.monitor.request_monitor import RequestView
from disagg.monitor.transfer_monitor import Carried
from disagg.plan import commands as cmd
from disagg.plan import events as ev
from disagg.plan.blocks import Part
from disagg.plan.config import Config
from disagg.plan.preemption import Arm, Choice
from disagg.plan.request import Finish, Sampling, Stage

LAYERS, HOST = 2, cmd.Worker("host", 0)


class Log:
    """A log by hand: one request of six tokens in blocks of four, split over two devices.

    Unless it is `alone`, another one is prefilled elsewhere meanwhile, so that something is always under way.
    """

    def __init__(self, alone=False):
        sizes = {"block_size": 4, "prefill_blocks": 4, "decode_blocks": 4, "host_blocks": 4, "watchdog_s": 1.0}
        config = Config.preset("split", **sizes, chunk_tokens=64, prefill_workers=2)
        self.monitor = Monitor(config, layers=LAYERS)
        self.now = 0
        if not alone:
            self.submit(99).move("prefill 1", "in_flight", 99, 0, 1)
            self.prefill(99, pass_id=1, worker=cmd.Worker("prefill", 1))

    def hear(self, event):
        self.now += 1
        self.monitor.hear(self.now, event)
        return self

    def obey(self, *commands):
        for command in commands:
            self.monitor.obey(self.now, command)
        return self

    def move(self, pool, state, owner, *blocks):
        self.monitor.moved(pool, state, owner, blocks)
        return self

    def submit(self, request=0, **job):
        return self.hear(ev.Submit(make_job(request, **job)))

    def prefill(self, request=0, blocks=(0, 1), pass_id=1, worker=PREFILL):
        chunk = cmd.Chunk(request, 0, 6, (1,) * 6, blocks, True, 0, Sampling(), None)
        return self.obey(cmd.Prefill(worker, pass_id, (chunk,), self.now))

    def prefilled(self, pass_id=1):
        return self.hear(ev.Prefilled(PREFILL, pass_id, (7,), 0, 1)).obey(cmd.Emit((0,), (7,), 1))

    def send(self, transfer=2, blocks=(0, 1), due=2, first=0, source=PREFILL, route="bulk"):
        return self.obey(cmd.Send(transfer, route, 0, source, first, blocks, due, (0,), True))

    def passing(self):
        """In a pass, with blocks 0 and 1 of the prefill device."""
        return self.submit().move("prefill 0", "in_flight", 0, 0, 1).prefill()

    def handing_off(self):
        """Sent to blocks 2 and 3 of the decode device."""
        self.passing().prefilled().send()
        return self.move("decode 0", "in_flight", 0, 2, 3).obey(cmd.Assign(2, DECODE, (2, 3)))

    def landed(self, *layers, transfer=2, block=0, end=2):
        return self.hear(ev.Landed(transfer, tuple(Part(n, n + 1, block, end) for n in layers), 8, 1))

    def committed(self):
        return self.landed(0, 1).move("decode 0", "used", 0, 2, 3).move("prefill 0", "free", None, 0, 1)

    def join(self, blocks=(2, 3), context=6, step=0):
        row = cmd.Join(0, 7, context, blocks, 1, Sampling())
        return self.obey(cmd.Decode(DECODE, step, (), (row,), (), ((0,),), self.now, False))

    def running(self):
        return self.handing_off().committed().join()

    def ended(self, finish=Finish.FAILED, error="why", request=0, stages=(Stage.QUEUED, Stage.ENDED)):
        path = tuple((0, stage) for stage in stages)
        return self.obey(cmd.Ended(request, finish, error, self.now, path))


def pages(log):
    """Spilled to the host: transfer 5 lands there."""
    log.running().hear(ev.Stepped(DECODE, 0, (8,), 0, 1, 7, 7)).obey(cmd.Emit((0,), (8,), 1))
    log.obey(cmd.Preempted(Choice(0, 7, 1, 1, Arm.SPILL), log.now)).move("host", "in_flight", 0, 0, 1)
    log.send(5, (2, 3), source=DECODE, route="spill").obey(cmd.Assign(5, HOST, (0, 1)))
    return log


BREACHES = {
    "Conservation": {
        "a block that is none": lambda log: log.submit().move("prefill 0", "in_flight", 0, 4),
        "an unknown state": lambda log: log.submit().move("prefill 0", "lent", 0, 1),
        "nobody's used block": lambda log: log.submit().move("prefill 0", "used", None, 1),
        "from free to quarantined": lambda log: log.submit().move("prefill 0", "quarantined", 0, 1),
        "never given back": lambda log: log.submit().move("prefill 0", "in_flight", 0, 0).hear(ev.Cancel(0))
        .ended(Finish.CANCELLED).hear(ev.Tick()).hear(ev.Tick()),
        "counts of its own": lambda log: log.monitor.blocks.compare("prefill 0", {"free": 4}),
    },
    "Alias": {
        "a second owner": lambda log: log.submit().submit(1).move("prefill 0", "in_flight", 0, 0)
        .move("prefill 0", "in_flight", 1, 0),
        "freed twice": lambda log: log.submit().move("prefill 0", "free", None, 0),
        "twice in a table": lambda log: log.submit().move("prefill 0", "in_flight", 0, 0, 1).prefill(blocks=(0, 0)),
        "somebody else's in a table": lambda log: log.submit().submit(1).move("prefill 0", "in_flight", 0, 0)
        .move("prefill 0", "in_flight", 1, 1).prefill(),
    },
    "InUse": {
        "freed under a pass": lambda log: log.passing().hear(ev.Tick()).move("prefill 0", "free", None, 0, 1),
        "freed under a copy's source": lambda log: log.handing_off().hear(ev.Tick()).move("prefill 0", "free", None, 0),
        "freed under a copy's target": lambda log: log.handing_off().hear(ev.Tick()).move("decode 0", "free", None, 2),
        "freed under a step": lambda log: log.running().hear(ev.Tick()).move("decode 0", "free", None, 2),
        "freed while aborted": lambda log: log.handing_off().hear(ev.Cancel(0)).obey(cmd.Abort(2))
        .ended(Finish.CANCELLED).hear(ev.Tick()).move("decode 0", "free", None, 2, 3),
        "free in a table": lambda log: log.submit().prefill(),
    },
    "OneEnd": {
        "two ends": lambda log: log.submit().ended().ended(),
        "a token after the end": lambda log: log.submit().ended().obey(cmd.Emit((0,), (1,), 1)),
        "an illegal move": lambda log: log.submit().ended(stages=(Stage.QUEUED, Stage.RUNNING, Stage.ENDED)),
        "stages that do not end": lambda log: log.submit().ended(stages=(Stage.QUEUED, Stage.PREFILLING)),
        "cancelled by nobody": lambda log: log.submit().ended(Finish.CANCELLED),
        "too short": lambda log: log.submit().ended(Finish.LENGTH),
        "no end of sequence": lambda log: log.submit().ended(Finish.EOS),
        "failed without a word": lambda log: log.submit().ended(error=None),
        "its transfer goes on": lambda log: log.handing_off().hear(ev.Cancel(0)).ended(Finish.CANCELLED),
        "a late cancel frees again": lambda log: log.submit().ended().hear(ev.Cancel(0)).obey(cmd.Abort(1)),
        "blocks after the end": lambda log: log.submit().ended().hear(ev.Tick()).move("prefill 0", "in_flight", 0, 1),
        "a second pass at once": lambda log: log.passing().prefill(),
        "survives its failed pass": lambda log: log.passing().hear(ev.PassFailed(PREFILL, 1, "x")).hear(ev.Tick()),
        "survives its failed step": lambda log: log.running().hear(ev.StepFailed(DECODE, 0, "x")).hear(ev.Tick()),
        "a bystander fails": lambda log: log.submit().submit(1).move("prefill 0", "in_flight", 0, 0, 1).prefill()
        .hear(ev.PassFailed(PREFILL, 1, "x")).ended().ended(request=1).hear(ev.Tick()),
        "a row that has ended": lambda log: log.running().hear(ev.Cancel(0)).move("decode 0", "quarantined", 0, 2, 3)
        .ended(Finish.CANCELLED).obey(cmd.Decode(DECODE, 1, (), (), (), ((0,),), 0, False)),
    },
    "Landing": {
        "a layer is missing": lambda log: log.handing_off().landed(0).join(),
        "a block is missing": lambda log: log.handing_off().landed(0).landed(1, end=1).join(),
        "committed too early": lambda log: log.handing_off().landed(0).move("decode 0", "used", 0, 2, 3),
        "spilled in part": lambda log: pages(log).hear(ev.Tick()).move("host", "used", 0, 0, 1),
        "after its abort": lambda log: log.handing_off().hear(ev.TransferFailed(2, "x")).obey(cmd.Abort(2))
        .hear(ev.TransferClosed(2)).move("decode 0", "used", 0, 2, 3),
        "nothing was ever sent": lambda log: log.passing().prefilled().hear(ev.Tick()),
        "the last block is not sent": lambda log: log.passing().prefilled().send(blocks=(0,)).hear(ev.Tick()),
        "the last block is not due": lambda log: log.passing().prefilled().send(blocks=(0,), due=1).hear(ev.Tick()),
        "read before all was sent": lambda log: log.passing().send(blocks=(0,)).hear(ev.SourceRead(2)),
        "a gap": lambda log: log.passing().prefilled().send(blocks=(1,), first=1),
        "a target too small": lambda log: log.passing().prefilled().send()
        .move("decode 0", "in_flight", 0, 2).obey(cmd.Assign(2, DECODE, (2,))),
        "fewer blocks than tokens": lambda log: log.handing_off().committed().join(context=9),
    },
    "Ledger": {
        "an id used again": lambda log: log.handing_off().committed().send(2, (2, 3), source=DECODE),
        "an id of somebody else's": lambda log: log.handing_off().send(due=3),
        "a second target": lambda log: log.handing_off().obey(cmd.Assign(2, DECODE, (2, 3))),
        "aborted twice": lambda log: log.handing_off().obey(cmd.Abort(2), cmd.Abort(2)),
        "aborted after its end": lambda log: log.handing_off().landed(0, 1).obey(cmd.Abort(2)),
        "a repeat moves blocks": lambda log: log.handing_off().landed(0).landed(0).move("decode 0", "used", 0, 2, 3),
        "a repeat was counted": lambda log: log.handing_off().landed(0).landed(0).join(),
        "a repeat counted later": lambda log: log.handing_off().landed(0, end=1).landed(0, end=1).landed(1)
        .move("decode 0", "used", 0, 2, 3),
        "a late pass": lambda log: log.submit().hear(ev.Prefilled(PREFILL, 9, (), 0, 1)).obey(cmd.Emit((0,), (1,), 1)),
        "a late step": lambda log: log.submit().hear(ev.Stepped(DECODE, 9, (1,), 0, 1, 1, 1)).ended(),
        "an unknown end": lambda log: log.submit().hear(ev.TransferClosed(9)).ended(),
        "closed but not aborted": lambda log: log.handing_off().hear(ev.TransferClosed(2)).obey(cmd.Abort(2)),
    },
    "Watchdog": {
        "a silent pass": lambda log: log.passing().monitor.watchdog(10**9 + 1),
        "a copy that does not land": lambda log: log.handing_off().monitor.watchdog(log.now + 10**9),
        "nobody works": lambda log: log.submit().hear(ev.Tick()),
        "broken without a cause": lambda log: log.submit().ended().obey(cmd.Broken("nothing is under way")),
    },
    "Drain": {
        "an open request": lambda log: log.handing_off().monitor.drained(log.now),
        "a block held": lambda log: log.running().hear(ev.Cancel(0)).move("decode 0", "quarantined", 0, 2, 3)
        .ended(Finish.CANCELLED).monitor.drained(log.now),
        "a copy": lambda log: log.handing_off().hear(ev.Cancel(0)).obey(cmd.Abort(2)).ended(Finish.CANCELLED)
        .monitor.drained(log.now),
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "detector, case", [pytest.param(name, case, id=f"{name}: {what}") for name in BREACHES
                       for what, case in BREACHES[name].items()],
)  # fmt: skip
def test_each_detector_raises_under_its_own_name(detector, case):
    with pytest.raises(InvariantViolation) as caught:
        case(Log(alone=detector in ("Watchdog", "Drain")))
    assert caught.value.detector == detector, caught.value


def test_a_violation_names_detector_request_blocks_and_the_last_events():
    with pytest.raises(InvariantViolation) as caught:
        Log().running().hear(ev.Tick()).move("decode 0", "free", None, 2)
    breach = caught.value
    assert (breach.detector, breach.request, breach.blocks) == ("InUse", 0, (2,))
    assert breach.events[-1].endswith("time passed: deadlines are checked") and len(breach.events) > 5
    for word in ("InUse", "request 0", "blocks 2", "decode 0", "run step 0", breach.events[0]):
        assert word in str(breach)
    owned = InvariantViolation("Alias", "it is owned", 3, (4, 5))
    assert owned.summary == "Alias: it is owned (request 3; blocks 4, 5)"
    assert InvariantViolation("Drain", "not empty").summary == "Drain: not empty"
    assert str(InvariantViolation("Landing", "late", 0, events=["a", "b"])) == "Landing: late (request 0)\n  a\n  b"


def test_two_that_hold_what_the_other_wants_are_printed_as_a_cycle():
    log = Log(alone=True).submit()
    log.monitor.requests.open[1] = RequestView(make_job(1), 1)
    log.move("prefill 0", "in_flight", 0, 0, 1, 2, 3).move("decode 0", "in_flight", 1, 0, 1, 2, 3)
    with pytest.raises(InvariantViolation, match="cycle: request 0 → request 1 → request 0") as caught:
        log.hear(ev.Tick())
    words = "request 0 (queued) waits for 0.0 ms for decode blocks, holds 4 of prefill 0; held by request 1 (4); 0 free"
    assert caught.value.detector == "Watchdog" and words in str(caught.value)


def test_a_break_without_a_cause_names_those_it_ended_with_what_they_held():
    log = Log(alone=True).submit(0).ended()
    log.submit(1).move("prefill 0", "in_flight", 1, 0, 1).move("prefill 0", "free", None, 0, 1).ended(request=1)
    words = "^Watchdog: nothing is under way; request 1 .*, holds 2 of prefill 0"
    with pytest.raises(InvariantViolation, match=words) as caught:
        log.obey(cmd.Broken("nothing is under way"))
    assert "request 0" not in caught.value.what


def test_after_a_violation_or_a_break_nothing_more_is_reported():
    log = Log().submit().ended().hear(ev.WorkerDied(PREFILL, "gone")).ended(request=99).obey(cmd.Broken("gone"))
    log.ended().move("prefill 0", "lent", 0, 99).monitor.drained(1)


class Checked(ControllerHarness):
    """A harness with all detectors."""

    def __init__(self, *args, **changes):
        super().__init__(*args, **changes)
        self.monitor = Monitor(self.state.config, layers=LAYERS)
        self.state.on_move.append(self.monitor.moved)

    def tell(self, event, after=1):
        self.monitor.hear(self.now + after, event)
        commands = super().tell(event, after)
        for command in commands:
            self.monitor.obey(self.now, command)
        self.monitor.settle()
        for pool in self.state.pools():
            self.monitor.blocks.compare(pool.name, pool.counts())
        return commands


def test_a_clean_run_is_silent():
    harness = Checked()
    harness.run_one(new=3)
    harness.landed(harness.part(0))  # late
    harness.stepped(2)
    harness.stepped(3)
    harness.cancel(0)
    harness.monitor.drained(harness.now)
    assert harness.ended() == {0: "length"} and harness.anomalies == 1


STRAYS = [ev.SourceRead(99), ev.Stepped(DECODE, 5, (1,), 0, 1, 1, 1), ev.TransferClosed(9), ev.Cancel(7)]


@pytest.mark.parametrize("stray", STRAYS, ids=lambda event: type(event).__name__)
def test_a_notice_that_tells_nothing_starts_nothing(stray):
    """Though there be something to start: that waits for an event that tells something."""
    harness = ControllerHarness()
    harness.submit()
    harness.state.enqueue(harness.state.enter(cmd.Turn(harness.now, []), make_job(1, prompt=3)))
    harness.state.prefills[0].passing = None
    harness.state.prefills[0].partial.clear()
    assert harness.controller.handle(stray, 5) == []
    assert harness.controller.handle(ev.Tick(), 6) != []


def test_what_landed_before_a_recompute_counts_no_more():
    """Colocated, nothing lands afterwards: a fetched request was preempted again before it joined (seed 4,877)."""
    log = Log().handing_off().committed()
    assert log.monitor.requests.get(0, "").due == 2
    log.move("decode 0", "free", None, 2, 3).move("prefill 0", "in_flight", 0, 0, 1).prefill(pass_id=3)
    assert log.monitor.requests.get(0, "").due is None


def test_a_row_that_leaves_still_runs_in_the_steps_before():
    batch = Batch("decode 0")
    joins = tuple(cmd.Join(request, 7, 6, (request,), 1, Sampling()) for request in (0, 1))
    batch.take(cmd.Decode(DECODE, 0, (), joins, (), ((0, 1),), 0, False))
    batch.take(cmd.Decode(DECODE, 1, (1,), (), (), ((0,),), 0, False))
    assert batch.running() == [0, 1] and batch.uses(1, 1)
    batch.end()
    assert batch.running() == [0] and not batch.uses(1, 1)


def test_what_a_transfer_misses_is_named_up_to_four_pairs():
    carried = Carried(1, "bulk", 0, "prefill 0", due=3, landed=[0b001, 0])
    assert carried.missing() == [
        "(layer 0, block 1)", "(layer 0, block 2)", "(layer 1, block 0)", "(layer 1, block 1)", "1 more"
    ]  # fmt: skip
    carried.landed = [0b111, 0b011]
    assert carried.missing() == ["(layer 1, block 2)"]
