"""The detectors: they hear what the controller hears and says, and raise an InvariantViolation.

    watch = Monitor(config, layers=30)
    watch.hear(now, event)                     # before the controller handles it
    commands = controller.handle(event, now)   # meanwhile each move of blocks goes to watch.moved
    for command in commands: watch.obey(now, command)

Conservation, Alias, InUse: watched_blocks · Landing, Ledger: watched_transfers · OneEnd: watched_requests ·
Watchdog: watched_waiting · Drain: here. Digest needs bytes and stands in run/transfer; Tokens needs a reference.
Nothing here asks the controller.
Notebook: notebooks/00_start_here.ipynb.
"""

from collections import deque
from typing import Never

from disagg.monitor.block_monitor import BlockWatch, place
from disagg.monitor.request_monitor import RequestWatch, View
from disagg.monitor.transfer_monitor import Carried, TransferWatch
from disagg.monitor.violation import InvariantViolation, entry_in_words
from disagg.monitor.wait_monitor import WaitWatch
from disagg.plan import commands as cmd
from disagg.plan import events as ev
from disagg.plan.blocks import blocks_for
from disagg.plan.config import Config
from disagg.plan.spans import BlockMove

TAIL = 12  # log entries that a breach shows


class Monitor:
    """All detectors of one controller. After a breach, or once the controller is broken, it says nothing more."""

    def __init__(self, config: Config, *, layers: int) -> None:
        self._size, self._colocated = config.block_size, config.colocated
        self.blocks = BlockWatch(config, self._breach)
        self.transfers = TransferWatch(layers, self.blocks, self._breach)
        self.requests = RequestWatch(self._breach)
        self.waiting = WaitWatch(config, self.blocks, self.transfers, self._breach)
        self.broken = False
        self.strays = 0  # notices that were told before, or of nobody
        self._tail: deque = deque(maxlen=TAIL)
        self._now = 0
        self._blame = ""  # the detector whose rule is broken if this event changes anything
        self._excused = False  # a deadline has passed or a worker died: the controller may break
        self._finals: list[View] = []  # whose prefill this event ended
        self._freed: list[BlockMove] = []
        self._settled = True

    # ---- what is called ----------------------------------------------------------------------------------------------

    def hear(self, now_ns: int, event) -> None:
        """Before the controller takes an event."""
        self.settle()
        self._now, self._settled = now_ns, False
        self._tail.append((now_ns, event))
        if self.broken:
            return
        self._excused = self.waiting.overdue(now_ns)
        if (hears := _HEARS.get(type(event))) is not None:
            self._blame = hears(self, event) or ""
            aborted = isinstance(event, ev.TransferFailed) and event.transfer in self.transfers.open
            self.strays += self._blame == "Ledger" and not aborted  # a copy may fail while its request is cancelled
        if self._excused:
            self._blame, self.requests.may_fail = "", None

    def moved(self, pool: str, state: str, owner: int | None, blocks: tuple[int, ...]) -> None:
        """Blocks changed state, while the controller handled the event."""
        if self.broken:
            return
        move = BlockMove(self._now, pool, state, owner, blocks)
        if self._blame:
            self._changed(f"blocks of {move.pool} become {move.state}", move.owner, move.blocks)
        if move.state == "free":
            self._freed.append(move._replace(owner=self.blocks.owner(move.pool, move.blocks)))
        elif move.owner is not None and move.state != "quarantined":
            view = self.requests.get(move.owner, "takes blocks")
            if move.state == "used":
                self._check_whole(view, move)
        self.blocks.moved(move)

    def obey(self, now_ns: int, command) -> None:
        """A command of the controller, before it is carried out."""
        self._tail.append((now_ns, command))
        if self.broken:
            return
        self._now = now_ns
        if self._blame:
            self._changed(f"the controller says {type(command).__name__}", getattr(command, "request", None))
        if (obeys := _OBEYS.get(type(command))) is not None:
            obeys(self, command)

    def settle(self) -> None:
        """After an event's last command: what had to follow from it. The next `hear` does this too."""
        if self._settled:
            return
        self._settled = True
        if not self.broken:
            self.requests.check_after()
            for view in self._finals:
                self._check_sent(view)
            self.blocks.check_ghosts()
            self.waiting.check_progress(self._now, self.requests.open)
        self._blame = ""
        self._finals.clear()
        self._freed.clear()
        self.requests.begin()

    def watchdog(self, now_ns: int) -> None:
        """Raises where something has waited longer than `config.watchdog_s`.

        Called before an event it finds what is late; after one, what the controller let pass.
        """
        self.settle()
        if not self.broken:
            self._now = now_ns
            self.waiting.check(now_ns, self.requests.open)

    def drained(self, now_ns: int) -> None:
        """At the end: nothing held, nothing running, nobody open."""
        self.settle()
        self._now = now_ns
        if self.broken:
            return
        for request in self.requests.open:
            words = self.waiting.in_words(now_ns, self.requests.open)
            self._breach("Drain", f"request {request} never ended: {words}", request)
        for carried in self.transfers.open.values():
            self._breach("Drain", f"transfer {carried.id} never ended", carried.request, carried.blocks)
        for what in self.waiting.begun:
            self._breach("Drain", f"{what[1]} never answered a {what[0]}")
        self.blocks.drained()

    def _breach(self, detector: str, what: str, request: int | None = None, blocks=()) -> Never:
        self.broken = True
        raise InvariantViolation(detector, what, request, blocks, (entry_in_words(*entry) for entry in self._tail))

    def _changed(self, what: str, request: int | None, blocks=()) -> None:
        why = (
            "a cancel of an ended request"
            if self._blame == "OneEnd"
            else "a notice that was told before, or of nobody,"
        )
        self._breach(self._blame, f"{why} changes something: {what}", request, blocks)

    # ---- events ------------------------------------------------------------------------------------------------------
    # Each returns the detector to blame if the event changes anything: where it is a repeat, late, or of nobody.

    def _submit(self, event: ev.Submit) -> None:
        self.requests.submit(event.job, self._now)

    def _cancel(self, event: ev.Cancel) -> str | None:
        if (view := self.requests.open.get(event.request)) is None:
            return "OneEnd"
        view.cancelled = True

    def _retune(self, event: ev.Retune) -> None:
        self.requests.may_fail = None

    def _request_failed(self, event: ev.RequestFailed) -> str | None:
        if event.request not in self.requests.open:
            return "OneEnd"
        self.requests.fails(event.request, surely=True)

    def _time_lost(self, event: ev.TimeLost) -> None:
        self.waiting.postpone(event.lost_ns)

    def _worker_died(self, event: ev.WorkerDied) -> None:
        self._excused = True

    def _pass_ended(self, event: ev.Prefilled | ev.PassFailed) -> str | None:
        command = self.waiting.passes.get(event.worker)
        if command is None or command.pass_id != event.pass_id:
            return "Ledger"
        del self.waiting.passes[event.worker], self.waiting.begun["pass", event.worker]
        failed = isinstance(event, ev.PassFailed)
        tokens = iter(() if failed else event.tokens)
        for chunk in command.chunks:
            self.blocks.leave(place(event.worker), chunk.blocks)
            view, token = self.requests.open.get(chunk.request), next(tokens, None) if chunk.final else None
            if failed:
                self.requests.fails(chunk.request, surely=True)
            elif chunk.final and view is not None:
                done = token in view.job.eos_ids or view.given + 1 == view.job.max_new_tokens
                self._prefilled(view, done)

    def _prefilled(self, view: View, done: bool) -> None:
        """Its first token is there; where that is the last one too, its transfer will be aborted."""
        view.prefilling, view.prefilled, view.since_ns = False, True, self._now
        if done:
            return
        self._finals.append(view)
        if self._colocated:
            view.arrived = True
        elif (carried := self.transfers.open.get(view.transfer)) is not None and not carried.aborted:
            if carried.complete:
                self._complete(carried, view)
            elif carried.target is not None:
                self.waiting.begun["transfer", carried.id] = self._now

    def _step_ended(self, event: ev.Stepped | ev.StepFailed) -> str | None:
        batch = self.blocks.batches.get(event.worker)
        if batch is None or not batch.steps or batch.steps[0] != event.step:
            return "Ledger"
        if isinstance(event, ev.StepFailed):
            for request in batch.running():
                self.requests.fails(request, surely=True)
        batch.end()
        del self.waiting.begun["step", event.worker, event.step]

    def _landed(self, event: ev.Landed) -> str | None:
        if not self.transfers.landed(event):
            return "Ledger"
        carried = self.transfers.open[event.transfer]
        view = self.requests.open.get(carried.request)
        if carried.complete and not carried.aborted and view is not None and not view.prefilling:
            self._complete(carried, view)

    def _complete(self, carried: Carried, view: View) -> None:
        self._close(carried)
        view.since_ns = self._now
        if carried.route == "spill":
            view.paged = True
        else:
            view.arrived, view.due, view.paged = True, carried.due, False

    def _close(self, carried: Carried) -> None:
        self.transfers.close(carried)
        self.waiting.begun.pop(("transfer", carried.id), None)

    def _source_read(self, event: ev.SourceRead) -> str:
        return "" if self.transfers.source_read(event.transfer) else "Ledger"

    def _transfer_failed(self, event: ev.TransferFailed) -> str | None:
        carried = self.transfers.open.get(event.transfer)
        if carried is None or carried.aborted:
            return "Ledger"
        self.requests.fails(carried.request)

    def _transfer_closed(self, event: ev.TransferClosed) -> str | None:
        carried = self.transfers.open.get(event.transfer)
        if carried is None or not carried.aborted:
            return "Ledger"
        self._close(carried)

    # ---- commands ----------------------------------------------------------------------------------------------------

    def _prefill(self, command: cmd.Prefill) -> None:
        pool = place(command.worker)
        if command.worker in self.waiting.passes:
            self._breach("OneEnd", f"{command.worker} gets a second pass while one runs")
        for chunk in command.chunks:
            view = self.requests.get(chunk.request, "is prefilled")
            self.blocks.own(f"pass {command.pass_id}", chunk.request, pool, chunk.blocks)
            self.blocks.touch(pool, chunk.blocks)
            if chunk.start == 0:
                view.prefilling, view.prefilled, view.arrived, view.paged = True, False, False, False
                view.since_ns, view.due = self._now, None
        self.waiting.passes[command.worker] = command
        self.waiting.begun["pass", command.worker] = self._now

    def _decode(self, command: cmd.Decode) -> None:
        batch = self.blocks.batches[command.worker]
        for join in command.joins:
            view = self.requests.get(join.request, "joins a batch")
            self._check_join(view, join, batch.pool)
            view.running, view.since_ns, view.due = True, self._now, None
        for request in command.left:
            if (view := self.requests.open.get(request)) is not None:
                view.running, view.since_ns = False, self._now
        for request, block in command.grown:
            self.blocks.own(f"step {command.step}", request, batch.pool, (block,))
        batch.take(command)
        for request in batch.gone:
            self._breach("OneEnd", f"step {command.step} has a row of request {request}, which has ended", request)
        self.waiting.begun["step", command.worker, command.step] = self._now

    def _check_join(self, view: View, join: cmd.Join, pool: str) -> None:
        """Landing: what decode reads is there, all of it."""
        request = join.request
        self.blocks.own(f"the row of request {request}", request, pool, join.blocks)
        if not view.arrived:
            self._check_landed(view, "decode starts", join.blocks)
        need = blocks_for(join.context, self._size)
        if view.due is not None and view.due != need:
            text = f"decode starts with {view.due} landed blocks; {join.context} tokens are in {need}"
            self._breach("Landing", text, request, join.blocks)

    def _check_whole(self, view: View, move: BlockMove) -> None:
        """Landing: committed blocks hold K/V that have landed, or were computed there."""
        if not (view.paged if move.pool == "host" else view.arrived):
            self._check_landed(view, f"blocks of {move.pool} count as landed", move.blocks)

    def _check_landed(self, view: View, what: str, blocks: tuple[int, ...]) -> None:
        if (carried := self.transfers.open.get(view.transfer)) is not None:
            self.transfers.check_complete(carried, what)
        self._breach("Landing", f"{what}, but no transfer of it has landed whole", view.job.id, blocks)

    def _check_sent(self, view: View) -> None:
        """Landing: prefill is over, so all its blocks may travel."""
        request = view.job.id
        if self._colocated or request not in self.requests.open or view.arrived or not view.prefilled:
            return
        carried = self.transfers.open.get(view.transfer)
        if carried is None:
            self._breach("Landing", "prefill is over, and nothing was sent", request)
        need = blocks_for(len(view.job.prompt) + view.given - 1, self._size)
        if carried.due != need:
            text = f"{carried.due} blocks are due, of {need} that hold its tokens"
            self._breach("Landing", text, request, tuple(carried.blocks))
        self.transfers.check_sent(carried)

    def _send(self, command: cmd.Send) -> None:
        view = self.requests.get(command.request, "is sent")
        self.transfers.send(command)
        view.transfer = command.transfer

    def _assign(self, command: cmd.Assign) -> None:
        carried = self.transfers.assign(command)
        if not self.requests.get(carried.request, "gets a target").prefilling:
            self.waiting.begun["transfer", carried.id] = self._now

    def _abort(self, command: cmd.Abort) -> None:
        carried = self.transfers.abort(command)
        self.waiting.begun.pop(("transfer", carried.id), None)
        self.waiting.begun["transfer", carried.id] = self._now

    def _emit(self, command: cmd.Emit) -> None:
        self.requests.emit(command)

    def _preempted(self, command: cmd.Preempted) -> None:
        view = self.requests.get(command.choice.request, "leaves its seat")
        view.arrived = view.prefilled = view.running = False
        view.since_ns = self._now

    def _ended(self, command: cmd.Ended) -> None:
        view = self.requests.end(command)
        carried = self.transfers.open.get(view.transfer)
        if carried is not None and not carried.aborted:
            text = f"it ends, and its transfer {carried.id} goes on"
            self._breach("OneEnd", text, command.request, carried.blocks)
        self.blocks.ended(command.request)

    def _broken(self, command: cmd.Broken) -> None:
        """Whoever breaks it without a cause has let requests wait for one another."""
        if not self._excused:
            self.waiting.broken(self._now, {**self.requests.left, **self.requests.open}, self._freed)
        self.broken = True


_HEARS = {
    ev.Submit: Monitor._submit,
    ev.Cancel: Monitor._cancel,
    ev.Retune: Monitor._retune,
    ev.RequestFailed: Monitor._request_failed,
    ev.TimeLost: Monitor._time_lost,
    ev.WorkerDied: Monitor._worker_died,
    ev.Prefilled: Monitor._pass_ended,
    ev.PassFailed: Monitor._pass_ended,
    ev.Stepped: Monitor._step_ended,
    ev.StepFailed: Monitor._step_ended,
    ev.Landed: Monitor._landed,
    ev.SourceRead: Monitor._source_read,
    ev.TransferFailed: Monitor._transfer_failed,
    ev.TransferClosed: Monitor._transfer_closed,
}
_OBEYS = {
    cmd.Prefill: Monitor._prefill,
    cmd.Decode: Monitor._decode,
    cmd.Send: Monitor._send,
    cmd.Assign: Monitor._assign,
    cmd.Abort: Monitor._abort,
    cmd.Emit: Monitor._emit,
    cmd.Ended: Monitor._ended,
    cmd.Preempted: Monitor._preempted,
    cmd.Broken: Monitor._broken,
}
