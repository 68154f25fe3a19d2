"""The controller: events in, commands out. It owns every request, queue, pool and table, and knows no clock.

After each event it does, in this order: deadlines, prefill passes, places for what travels, decode steps.
Rules it keeps: ending is not freeing; a transfer ends once; decode starts when the set landed equals the set due;
a deadline starts once and never moves; reservations take all or nothing; fail closed.
Notebook: notebooks/00_start_here.ipynb.
"""

from disagg.plan import events as ev
from disagg.plan.blocks import blocks_for
from disagg.plan.commands import Broken, Emit, Retuned
from disagg.plan.config import Config
from disagg.plan.decode_scheduler import DecodeScheduler
from disagg.plan.errors import ConfigError
from disagg.plan.kv_transfers import KVTransfers
from disagg.plan.prefill_scheduler import PrefillScheduler
from disagg.plan.queues import POLICIES
from disagg.plan.request import Finish, Job
from disagg.plan.state import ControllerState
from disagg.plan.why import open_in_words

#: Settings that a running engine can change.
LIVE = ("link", "prefill_blocks", "host_blocks", "decode_blocks", "chunk_tokens", "max_batch", "bins", "policy",
        "itl_target_s", "layers_per_copy")  # fmt: skip


class Controller:
    """One for the real workers and for the virtual clock. `config` must have its block counts filled in.

    `steps_in_flight` is 2 where a decode step is launched before the last one's tokens are known. `pads` says that
    attention of a bin reads every row as far as the longest; kernels that read the paged cache in place don't.
    """

    def __init__(
        self, config: Config, *, layers: int, token_bytes: int, steps_in_flight: int = 1, pads: bool = True
    ) -> None:
        shape = dict(layers=layers, token_bytes=token_bytes)
        self.state = ControllerState(config, **shape, steps_in_flight=steps_in_flight, pads=pads)
        self.movement = KVTransfers(self.state)
        self.prefilling = PrefillScheduler(self.state, self.movement)
        self.decoding = DecodeScheduler(self.state, self.movement)
        self.broken: str | None = None

    def handle(self, event, now_ns: int) -> list:
        """Takes one event, returns the commands it leads to. A broken controller takes none."""
        state = self.state
        state.now_ns, state.out = now_ns, []
        if not self.broken:
            told_nothing = getattr(self, _HANDLERS[type(event)])(event)
            expired = self._expire()
            if not self.broken and (expired or not told_nothing):
                self._advance()
                self._check_progress()
        return state.out

    def refusal(self, job: Job) -> str | None:
        """Why this job can never be served by these pools, in words; None where it can. Changes nothing."""
        size = self.state.config.block_size
        need = blocks_for(len(job.prompt) + job.max_new_tokens, size)
        for pool in self.state.pools()[:-1]:
            if need > pool.capacity:
                return (
                    f"prompt of {len(job.prompt)} tokens and {job.max_new_tokens} new ones need {need} blocks of "
                    f"{size}, but {pool.name} has {pool.capacity}; shorten the request or raise "
                    f"{pool.name.split()[0]}_blocks"
                )
        return None

    def check_live(self, config: Config) -> None:
        """Raises ConfigError where `config` changes what a running engine can't."""
        old = self.state.config
        for name in vars(old):
            if getattr(old, name) != getattr(config, name) and name not in LIVE:
                raise ConfigError(f"{name} can't change while the engine runs; those that can: {', '.join(LIVE)}")

    # ---- events ------------------------------------------------------------------------------------------------------
    # A handler returns True where the event told nothing: it came late, twice or for nobody. Then nothing follows.

    def _submit(self, event: ev.Submit) -> None:
        self.state.enter(event.job)
        if refusal := self.refusal(event.job):  # a pool has shrunk since it was accepted
            self.state.end(self.state.records[event.job.id], Finish.FAILED, refusal)

    def _cancel(self, event: ev.Cancel) -> bool | None:
        record = self.state.records.get(event.request)
        if record is None:
            return True
        self.state.end(record, Finish.CANCELLED)

    def _tick(self, event: ev.Tick) -> None:
        """Only deadlines."""

    def _request_failed(self, event: ev.RequestFailed) -> bool | None:
        record = self.state.records.get(event.request)
        if record is None:  # a step more of it was in flight
            return True
        self.state.end(record, Finish.FAILED, event.error)

    def _time_lost(self, event: ev.TimeLost) -> None:
        self.state.postpone(event.lost_ns)

    def _retune(self, event: ev.Retune) -> None:
        state, config = self.state, event.config
        self.check_live(config)
        state.config = config
        state.host.capacity = min(state.host.total, config.host_blocks)
        for seat in state.prefills:
            seat.pool.capacity = min(seat.pool.total, config.prefill_blocks)
        for seat in state.decodes:
            seat.pool.capacity = min(seat.pool.total, config.decode_blocks)
            seat.retune(config.bins, config.itl_target_s)
        state.costs.out, state.costs.back = config.links
        for queue in state.queues():
            queue.reorder(POLICIES[config.policy])
        state.out.append(Retuned(config))
        for record in list(state.records.values()):
            if refusal := self.refusal(record.job):
                state.end(record, Finish.FAILED, f"request {record.id} no longer fits: {refusal}")

    def _prefilled(self, event: ev.Prefilled):
        seat = self.state.prefills[event.worker.index]
        if seat.passing is None or seat.passing.id != event.pass_id:
            return self._anomaly()
        self.state.costs.observe_prefill(seat.passing.tokens, event.ended_ns - event.started_ns)
        first = self.prefilling.finish(seat, event.tokens)
        if first:
            ids = tuple(record.id for record in first)
            self.state.out.append(Emit(ids, tuple(record.generated[-1] for record in first), event.ended_ns))
        for record in first:
            if self.state.end_if_done(record):
                continue
            if seat.decode is None:
                self.movement.prefilled(record)
            else:
                record.decode_table.commit()
                self.state.arrive(record)

    def _pass_failed(self, event: ev.PassFailed):
        seat = self.state.prefills[event.worker.index]
        if seat.passing is None or seat.passing.id != event.pass_id:
            return self._anomaly()
        for record in self.prefilling.finish_failed(seat):
            self.state.end(record, Finish.FAILED, f"prefill of request {record.id} failed: {event.error}")

    def _stepped(self, event: ev.Stepped):
        state, seat = self.state, self.state.decodes[event.worker.index]
        if not seat.steps or seat.steps[0].number != event.step:
            return self._anomaly()
        step = self.decoding.finish(seat)
        state.padding.add(step.used_slots, step.padded_slots)
        state.counts["padding_mismatches"] += (step.used_slots, step.padded_slots) != (
            event.used_slots,
            event.padded_slots,
        )
        if seat.composer:
            seconds = (event.ended_ns - event.started_ns) / 1e9
            seat.composer.observe(len(step.requests), step.used_slots, seconds)
        ending = seat.take_tokens(step, event.tokens, state.eos_ids)
        requests, tokens = step.kept(event.tokens)
        state.out.append(Emit(requests, tokens, event.ended_ns))
        for record in ending:
            state.end_if_done(record)

    def _step_failed(self, event: ev.StepFailed):
        seat = self.state.decodes[event.worker.index]
        if not seat.steps or seat.steps[0].number != event.step:
            return self._anomaly()
        step = self.decoding.finish(seat)
        for request in step.requests:
            record = self.state.records.get(request)
            if record is not None:
                self.state.end(record, Finish.FAILED, f"decode of request {request} failed: {event.error}")

    def _landed(self, event: ev.Landed) -> bool:
        transfer = self._transfer(event.transfer)
        if transfer is None:
            return True
        fresh = [transfer.landed.add(part) for part in event.parts]
        self.state.counts["anomalies"] += fresh.count(False)
        if transfer.route in ("spill", "fetch") and all(fresh):
            self.state.costs.observe_copy(event.nbytes, event.took_ns)
        if transfer.complete and not transfer.aborted:
            self.movement.complete(transfer)
        return not any(fresh)

    def _source_read(self, event: ev.SourceRead):
        transfer = self._transfer(event.transfer)
        if transfer is None:
            return True
        if transfer.source_read:
            return self._anomaly()
        self.movement.source_read(transfer)

    def _transfer_failed(self, event: ev.TransferFailed) -> bool | None:
        transfer = self._transfer(event.transfer)
        if transfer is None or transfer.aborted:
            return True
        error = f"{transfer.route} transfer of request {transfer.record.id} failed: {event.error}"
        self.movement.fail(transfer, error)

    def _transfer_closed(self, event: ev.TransferClosed):
        transfer = self._transfer(event.transfer)
        if transfer is None:
            return True
        if not transfer.aborted:
            return self._anomaly()
        self.movement.closed(transfer)

    def _worker_died(self, event: ev.WorkerDied) -> None:
        self._break(f"{event.worker} died: {event.error}")

    def _anomaly(self) -> bool:
        self.state.counts["anomalies"] += 1
        return True

    def _transfer(self, number: int):
        """The open transfer of a notice; a notice for any other changes nothing and is counted."""
        transfer = self.state.transfers.get(number)
        self.state.counts["anomalies"] += transfer is None
        return transfer

    # ---- after each event --------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        if self.state.config.colocated:
            for seat in self.state.prefills:
                self._take_turns(seat)
            return
        for seat in self.state.prefills:
            self.prefilling.fill(seat)
        self.movement.assign()
        for seat in self.state.decodes:
            while self.decoding.step(seat):
                """Until as many are in flight as may be."""

    def _take_turns(self, seat) -> None:
        """One device: a prefill pass and a decode step alternate where both have something to do."""
        decode = seat.decode
        self.movement.assign()
        if seat.passing or (decode.steps and seat.waiting):
            return
        if not seat.waiting:
            while self.decoding.step(decode):
                seat.prefilled_last = False
        elif seat.prefilled_last:
            seat.prefilled_last = not self.decoding.step(decode) and self.prefilling.fill(seat)
        else:
            seat.prefilled_last = self.prefilling.fill(seat)
            if not seat.prefilled_last:
                self.decoding.step(decode)

    def _expire(self) -> bool:
        """Deadlines: a silent worker breaks the engine, a late transfer fails, one that never ends breaks it too.

        True where one had passed.
        """
        limit, passed = f"{self.state.config.watchdog_s:g} s", False
        while not self.broken and (overdue := self.state.overdue()) is not None:
            passed = True
            match overdue:
                case ("transfer", transfer):
                    what = f"its {transfer.route} transfer of {transfer.blocks} blocks has not landed within {limit}"
                    self.movement.fail(transfer, f"watchdog: request {transfer.record.id}: {what}")
                case ("close", transfer):
                    self._break(f"a {transfer.route} copy of request {transfer.record.id} has not ended within {limit}")
                case (kind, seat):
                    self._break(f"{seat.worker} has not answered a {kind} within {limit}")
        return passed

    def _check_progress(self) -> None:
        """With nothing under way no event will ever come: whoever waits then would wait for ever, and is told so."""
        if self.state.records and not self.state.under_way:
            self._break(f"nothing is under way, but these wait: {open_in_words(self.state)}")

    def _break(self, cause: str) -> None:
        """Everything open fails with this cause; nothing is scheduled any more."""
        for record in list(self.state.records.values()):
            self.state.end(record, Finish.FAILED, cause)
        self.broken = cause
        self.state.settle_all()
        self.state.out.append(Broken(cause))


_HANDLERS = {
    ev.Submit: "_submit",
    ev.Cancel: "_cancel",
    ev.Tick: "_tick",
    ev.RequestFailed: "_request_failed",
    ev.TimeLost: "_time_lost",
    ev.Retune: "_retune",
    ev.Prefilled: "_prefilled",
    ev.PassFailed: "_pass_failed",
    ev.Stepped: "_stepped",
    ev.StepFailed: "_step_failed",
    ev.Landed: "_landed",
    ev.SourceRead: "_source_read",
    ev.TransferFailed: "_transfer_failed",
    ev.TransferClosed: "_transfer_closed",
    ev.WorkerDied: "_worker_died",
}
