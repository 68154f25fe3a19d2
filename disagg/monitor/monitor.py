"""The detectors: they read a controller's events, commands and block moves, and raise an InvariantViolation.

    monitor = Monitor(config, layers=30)
    controller.state.on_move.append(monitor.moved)
    commands = monitor.around(controller.handle, event, now)

Conservation, Alias, InUse: block_monitor · Landing, Ledger: transfer_monitor · OneEnd: request_monitor ·
Watchdog: wait_monitor · Drain: here. Digest compares bytes in run/transfers; Tokens needs a reference.
Notebook: notebooks/00_start_here.ipynb.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Never

from disagg.monitor import command_rules, event_rules
from disagg.monitor.log_view import LogView
from disagg.monitor.violation import InvariantViolation, entry_in_words
from disagg.plan import commands as cmd
from disagg.plan import events as ev
from disagg.plan.config import Config
from disagg.trace.spans import BlockMove

TAIL = 12  # log entries that a violation shows


class Monitor:
    """All detectors of one controller. After a violation, or once the controller is broken, nothing is reported."""

    def __init__(self, config: Config, *, layers: int) -> None:
        self.log = log = LogView(config, layers, self._report)
        self.blocks, self.transfers, self.requests, self.waiting = log.blocks, log.transfers, log.requests, log.waiting
        self.broken = False
        self.strays = 0  # notices that are repeats, late, or of a transfer, pass or step that is not open
        self._tail: deque[tuple[int, ev.Event | cmd.Command]] = deque(maxlen=TAIL)
        self._blame = ""  # the detector whose rule is broken if this event changes anything
        self._freed: list[BlockMove] = []
        self._settled = True

    def around(
        self, handle: Callable[[ev.Event, int], list[cmd.Command]], event: ev.Event, now_ns: int
    ) -> list[cmd.Command]:
        """Calls a controller's `handle` with checks before it, during it and after it."""
        self.hear(now_ns, event)
        commands = handle(event, now_ns)
        for command in commands:
            self.obey(now_ns, command)
        self.settle()
        if isinstance(event, ev.Tick):
            self.watchdog(now_ns)
        return commands

    def hear(self, now_ns: int, event: ev.Event) -> None:
        """Called before the controller handles an event."""
        self.settle()
        self.log.now_ns, self._settled = now_ns, False
        self._tail.append((now_ns, event))
        if self.broken:
            return
        self.log.excused = overdue = self.waiting.overdue(now_ns)
        self._blame = event_rules.hear(self.log, event)
        aborted = isinstance(event, ev.TransferFailed) and event.transfer in self.transfers.open
        self.strays += self._blame == "Ledger" and not aborted  # a copy may fail while its request is cancelled
        if overdue or self.log.excused:
            self._blame, self.requests.may_fail = "", None

    def moved(self, pool: str, state: str, owner: int | None, blocks: tuple[int, ...]) -> None:
        """Called when blocks change state while the controller handles the event."""
        if self.broken:
            return
        move = BlockMove(self.log.now_ns, pool, state, owner, blocks)
        if self._blame:
            self._changed(f"blocks of {move.pool} become {move.state}", move.owner, move.blocks)
        if move.state == "free":
            self._freed.append(move._replace(owner=self.blocks.owner(move.pool, move.blocks)))
        elif move.owner is not None and move.state != "quarantined":
            view = self.requests.get(move.owner, "takes blocks")
            if move.state == "used" and not (view.paged if move.pool == "host" else view.arrived):
                self.log.check_landed(view, f"blocks of {move.pool} count as landed", move.blocks)
        self.blocks.moved(move)

    def obey(self, now_ns: int, command: cmd.Command) -> None:
        self._tail.append((now_ns, command))
        if self.broken:
            return
        self.log.now_ns = now_ns
        if self._blame:
            self._changed(f"the controller gives {type(command).__name__}", getattr(command, "request", None))
        if isinstance(command, cmd.Broken):
            self._break(command.policy)
        else:
            command_rules.obey(self.log, command)

    def settle(self) -> None:
        """Checks the results of an event after its last command. The next `hear` calls it too."""
        if self._settled:
            return
        self._settled = True
        if not self.broken:
            self.requests.check_after()
            for view in self.log.finals:
                command_rules.check_sent(self.log, view)
            self.blocks.check_ended()
            self.waiting.check_progress(self.log.now_ns, self.requests.open)
        self._blame = ""
        self.log.finals.clear()
        self._freed.clear()
        self.requests.begin()

    def watchdog(self, now_ns: int) -> None:
        """Raises if something has waited longer than `config.watchdog_s`."""
        self.settle()
        if not self.broken:
            self.log.now_ns = now_ns
            self.waiting.check(now_ns, self.requests.open)

    def drained(self, now_ns: int) -> None:
        """At the end no block is held, nothing runs, and no request is open."""
        self.settle()
        self.log.now_ns = now_ns
        if self.broken:
            return
        for request in self.requests.open:
            words = self.waiting.in_words(now_ns, self.requests.open)
            self._report("Drain", f"request {request} never ended: {words}", request)
        for carried in self.transfers.open.values():
            self._report("Drain", f"transfer {carried.id} never ended", carried.request, carried.blocks)
        for what in self.waiting.begun:
            self._report("Drain", f"{what[1]} never answered a {what[0]}")
        self.blocks.drained()

    def _report(self, detector: str, what: str, request: int | None = None, blocks: Iterable[int] = ()) -> Never:
        self.broken = True
        raise InvariantViolation(detector, what, request, blocks, (entry_in_words(*entry) for entry in self._tail))

    def _changed(self, what: str, request: int | None, blocks: Iterable[int] = ()) -> None:
        stray = "a cancel of an ended request" if self._blame == "OneEnd" else "a notice that tells nothing new"
        self._report(self._blame, f"{stray} changes something: {what}", request, blocks)

    def _break(self, policy: bool) -> None:
        """If the controller broke without a cause, and its policy is none, requests wait for one another."""
        if not (policy or self.log.excused):
            requests = {**self.requests.left, **self.requests.open}
            self.waiting.broken(self.log.now_ns, requests, self._freed)
        self.broken = True
