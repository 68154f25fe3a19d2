"""The controller: events in, commands out. After each event: deadlines, prefill passes, transfers, decode steps.

A transfer ends once; decode starts when the blocks landed are the blocks due; a deadline starts once and never moves;
a reservation takes all blocks or none; a broken controller takes no event.
Notebook: notebooks/00_start_here.ipynb.
"""

from typing import assert_never

from disagg.plan import events as ev
from disagg.plan.blocks import blocks_for
from disagg.plan.checks import present, short
from disagg.plan.commands import Broken, Command, Retuned, Turn
from disagg.plan.config import Config
from disagg.plan.decode_scheduler import DecodeScheduler
from disagg.plan.errors import ConfigError, PolicyError
from disagg.plan.gates import open_in_words
from disagg.plan.kv_transfers import KVTransfers
from disagg.plan.notices import Notices
from disagg.plan.placement import Placement
from disagg.plan.prefill_scheduler import PrefillScheduler
from disagg.plan.request import Finish, Job
from disagg.plan.state import ControllerState
from disagg.plan.transfer import Transfer
from disagg.plan.worker_state import DecodeWorkerState, PrefillWorkerState

#: Settings that a running engine can change.
BLOCKS = ("prefill_blocks", "host_blocks", "decode_blocks")
LIVE = ("link", *BLOCKS, "chunk_tokens", "max_batch", "bins", "policy", "itl_target_s", "layers_per_copy", "overlap")


class Controller:
    """`config` must have its block counts filled in.

    `steps_in_flight` is 2 where a decode step is launched before the last one's tokens are known. `pads`: attention
    reads every row of a bin up to the longest one's length, as it does without a kernel for the paged cache.
    """

    def __init__(
        self, config: Config, *, layers: int, token_bytes: int, steps_in_flight: int = 1, pads: bool = True
    ) -> None:
        self.state = ControllerState(config, layers, token_bytes, steps_in_flight, pads)
        self.placement = Placement(self.state)
        self.kv_transfers = KVTransfers(self.state, self.placement.off, self.placement.back)
        self.notices = Notices(self.state, self.kv_transfers)
        self.prefilling = PrefillScheduler(self.state, self.kv_transfers)
        self.decoding = DecodeScheduler(self.state, self.kv_transfers)
        self.broken: str | None = None
        self.broken_by_policy = False

    def handle(self, event: ev.Event, now_ns: int) -> list[Command]:
        """Takes one event, returns the commands it leads to. A broken controller takes none."""
        turn = Turn(now_ns, [])
        if not self.broken:
            try:
                self._handle(turn, event)
            except PolicyError as error:
                self._break(turn, str(error), policy=True)
        return turn.commands

    def _handle(self, turn: Turn, event: ev.Event) -> None:
        changed = self._apply(turn, event)
        expired = self._expire(turn)
        if not self.broken and (changed or expired):
            self._advance(turn)
            self._check_progress(turn)

    def refusal(self, job: Job) -> str | None:
        """Why these pools can never serve this job; None where they can."""
        size = self.state.config.block_size
        need = blocks_for(len(job.prompt) + job.max_new_tokens, size)
        for pool in self.state.pools()[:-1]:
            if need > pool.capacity:
                what = f"prompt of {len(job.prompt)} tokens and {job.max_new_tokens} new ones need {need} blocks"
                advice = f"shorten the request or raise {pool.setting}"
                return f"{what} of {size}, but {pool.name} has {pool.capacity}; {advice}"
        return None

    def check_live(self, config: Config) -> None:
        """Raises ConfigError where `config` changes what a running engine can't."""
        old = self.state.config
        for name in vars(old):
            if getattr(old, name) != getattr(config, name) and name not in LIVE:
                raise ConfigError(f"{name} can't change while the engine runs; those that can: {', '.join(LIVE)}")

    # ---- events ------------------------------------------------------------------------------------------------------

    def _apply(self, turn: Turn, event: ev.Event) -> bool:
        """Enters the event into the state; False where it changes nothing."""
        match event:
            case ev.Stepped() | ev.StepFailed():
                return self.decoding.ended(turn, event)
            case ev.Landed() | ev.SourceRead() | ev.TransferFailed() | ev.TransferClosed():
                return self.notices.take(turn, event)
            case ev.Prefilled() | ev.PassFailed():
                return self._pass_ended(turn, event)
            case ev.Cancel():
                return self._cancel(turn, event)
            case ev.RequestFailed():
                return self.state.end_open(turn, event.request, Finish.FAILED, event.error)
            case ev.Submit(job):
                record = self.state.enter(turn, job)
                if refusal := self.refusal(job):  # a pool has shrunk since it was accepted
                    self.state.end(turn, record, Finish.FAILED, refusal)
                else:
                    self.placement.arrive(turn, record)
            case ev.Retune():
                self._retune(turn, event)
            case ev.TimeLost():
                self.state.deadlines.postpone(event.lost_ns)
            case ev.Probed():
                self.state.probed(event)
                return False
            case ev.WorkerDied():
                self._break(turn, f"{event.worker} died: {event.error}")
            case ev.Tick():
                """Only deadlines are checked."""
            case _:
                assert_never(event)
        return True

    def _pass_ended(self, turn: Turn, event: ev.Prefilled | ev.PassFailed) -> bool:
        """The rows of a mixed pass have their step's end with it."""
        worker = self.state.prefills[event.worker.index]
        done = worker.passing
        if not self.prefilling.ended(turn, event):
            return False
        if done is not None and done.step is not None:
            self.decoding.mixed_ended(turn, worker, done, event)
        return True

    def _cancel(self, turn: Turn, event: ev.Cancel) -> bool:
        return self.state.end_open(turn, event.request, Finish.CANCELLED)

    def _retune(self, turn: Turn, event: ev.Retune) -> None:
        self.check_live(event.config)
        self.state.retune(event.config)
        turn.commands.append(Retuned(event.config))
        for record in list(self.state.records.values()):
            if refusal := self.refusal(record.job):
                self.state.end(turn, record, Finish.FAILED, f"request {record.id} no longer fits: {refusal}")

    # ---- after each event --------------------------------------------------------------------------------------------

    def _advance(self, turn: Turn) -> None:
        """Passes, transfers and steps that can start now."""
        state = self.state
        state.policy.idle = False
        if state.config.colocated:
            self.kv_transfers.assign(turn)
            for worker in state.prefills:
                self._share(turn, worker, present(worker.decode))
            return
        for worker in state.prefills:
            self.prefilling.fill(turn, worker)
        while self.kv_transfers.assign(turn):  # blocks that a recompute has let go are for the next that waits
            for worker in state.prefills:
                self.prefilling.fill(turn, worker)
        for decode in state.decodes:
            self.decoding.fill(turn, decode)

    def _share(self, turn: Turn, worker: PrefillWorkerState, decode: DecodeWorkerState) -> None:
        """A worker that prefills and decodes: where it has both to do, rows decode in the pass of the chunks, whose
        budget they count in (stall-free batching, Sarathi-Serve, OSDI 2024); without mixed passes the two alternate."""
        if worker.passing or (decode.steps and worker.waiting):
            return
        if not worker.waiting:
            worker.prefilled_last = not self.decoding.fill(turn, decode) and worker.prefilled_last
        elif not self.state.config.mixed_passes:
            self._alternate(turn, worker, decode)
        elif not self.decoding.compose(turn, decode):
            if not self.prefilling.fill(turn, worker):  # a place that was kept for a prompt is free again
                self.decoding.fill(turn, decode)
        else:
            budget = self.state.config.chunk_tokens - len(decode.rows)
            if decode.composer:
                budget = decode.composer.budget(worker.speed, len(decode.rows), budget)
            budget = max(self.state.config.block_size, budget)
            chunks = self.prefilling.compose(turn, worker, budget)
            step = self.decoding.issue(turn, decode, alone=not chunks, mixed=bool(chunks))
            if not self.prefilling.start(turn, worker, chunks, step):
                turn.commands.append(step)

    def _alternate(self, turn: Turn, worker: PrefillWorkerState, decode: DecodeWorkerState) -> None:
        if worker.prefilled_last and self.decoding.step(turn, decode):
            worker.prefilled_last = False
        else:
            worker.prefilled_last = self.prefilling.fill(turn, worker)
            if not worker.prefilled_last:
                self.decoding.step(turn, decode)

    def _expire(self, turn: Turn) -> bool:
        """A late worker or aborted transfer breaks the engine, a late transfer fails; True where a deadline passed."""
        passed = False
        while not self.broken and (overdue := self.state.deadlines.overdue(turn)) is not None:
            passed, limit = True, f"{self.state.config.watchdog_s:g} s"
            match overdue:
                case PrefillWorkerState() | DecodeWorkerState():
                    work = "pass" if isinstance(overdue, PrefillWorkerState) else "step"
                    self._break(turn, f"{overdue.name} has not answered a {work} within {limit}")
                case Transfer(aborted=True, record=record):
                    self._break(turn, f"a {overdue.route} copy of request {record.id} has not ended within {limit}")
                case Transfer(record=record):
                    what = f"its {overdue.route} transfer of {overdue.blocks} blocks has not landed within {limit}"
                    self.kv_transfers.fail(turn, overdue, f"watchdog: request {record.id}: {what}")
        return passed

    def _check_progress(self, turn: Turn) -> None:
        """With nothing in flight no event will come: the requests that wait fail, with their gates as the cause."""
        if self.state.records and self.state.deadlines.next_ns is None:
            waiting = open_in_words(self.state)
            if self.state.policy.idle:
                raise PolicyError(f"policy {short(self.state.policy.name)} lets nobody go on; these wait: {waiting}")
            self._break(turn, f"nothing is under way, but these wait: {waiting}")

    def _break(self, turn: Turn, cause: str, policy: bool = False) -> None:
        """All open requests fail with this cause."""
        for record in list(self.state.records.values()):
            self.state.end(turn, record, Finish.FAILED, cause)
        self.broken, self.broken_by_policy = cause, policy
        self.state.deadlines.clear()
        turn.commands.append(Broken(cause, policy))
