"""Where a request goes: split or kept, on which worker, and whether K/V in host memory are fetched or computed again.

The estimates are here, the decision is the policy's. Both arms of a decision are recorded with their terms.
Notebook: notebooks/05_dynamic_batching.ipynb.
"""

from collections import Counter

from disagg.plan.blocks import blocks_for
from disagg.plan.checks import present
from disagg.plan.commands import Placed, Turn
from disagg.plan.policy import Option
from disagg.plan.preemption import Arm, Choice
from disagg.plan.request import Finish, Record
from disagg.plan.state import ControllerState
from disagg.plan.transfer import PAGING
from disagg.plan.worker_state import DecodeWorkerState, PrefillWorkerState

Terms = tuple[tuple[str, int], ...]


class Placement:
    def __init__(self, state: ControllerState) -> None:
        self.state = state

    def arrive(self, turn: Turn, record: Record) -> None:
        """A new request goes to the workers that only prefill, or to one that does both; or it is rejected."""
        state, options = self.state, self._options(record)
        choice = self.decide(turn, record, options, kept=len(options) > 1)
        if choice is None:
            return
        if state.config.colocated:
            record.stays, record.prefill_worker = choice.way == "stay", choice.worker
            record.decode_worker = choice.onto
        if len(options) > 1:
            state.counts[choice.way] += 1
        state.enqueue(record)

    def decide(self, turn: Turn, record: Record, options: tuple[Option, ...], kept: bool = True) -> Option | None:
        """The policy's choice; None where it has rejected the request, which is then over."""
        state = self.state
        choice = state.policy.choose(record.seen(record.prefill_target), options, turn.now_ns)
        way = "" if isinstance(choice, str) else choice.way
        if kept or not way:
            turn.commands.append(Placed(record.id, way, options, turn.now_ns))
        if isinstance(choice, str):
            state.end(turn, record, Finish.REJECTED, f"request {record.id} is rejected by policy: {choice}")
            return None
        state.because("place", request=record.id, way=choice.way, options=options)
        return choice

    def back(self, turn: Turn, record: Record) -> Option | None:
        """K/V in host memory, for which decode has room: fetched, or computed again."""
        state = self.state
        ahead = sum(t.blocks for t in state.transfers.values() if t.route == "fetch" and not t.aborted)
        size, costs = state.config.block_size * state.token_bytes, state.costs
        copy = ("copy", costs.copy_ns(costs.back, blocks_for(record.context, state.config.block_size) * size))
        fetch = Option("fetch", 0, (copy, ("copies ahead", costs.copy_ns(costs.back, ahead * size))))
        return self.decide(turn, record, (fetch, self._again(record)))

    def off(self, turn: Turn, record: Record) -> Choice:
        """K/V of a request that leaves its decode worker: spilled (there and back, behind other paging) or computed
        again, by policy."""
        state, size = self.state, self.state.config.block_size * self.state.token_bytes
        blocks = blocks_for(record.context, state.config.block_size)
        ahead = sum(t.blocks for t in state.transfers.values() if t.route in PAGING)
        again, spill_ns = self._again(record), state.costs.spill_ns(blocks * size, ahead * size)
        spill = [Option("spill", 0, (("spill", spill_ns),))] if state.host.available >= blocks else []
        arm = state.policy.choose(record.seen(record.context), (*spill, again), turn.now_ns)
        way = Arm.SPILL if arm in spill else Arm.RECOMPUTE
        return Choice(record.id, record.context, spill[0].ns if spill else None, again.ns, way)

    def _again(self, record: Record) -> Option:
        """Its K/V computed again, behind all that waits for prefill; no terms while no pass has been measured."""
        worker, budget = self.state.prefills[0], self.state.config.chunk_tokens
        parts = (("queue", self.state.backlog), ("prefill", record.context + 1))
        terms = tuple((name, self._time_ns(worker, tokens, budget)) for name, tokens in parts)
        return Option("recompute", 0, terms if self.state.speed_of(worker).seen else ())

    def _options(self, record: Record) -> tuple[Option, ...]:
        """Colocated, requests go round robin to the workers; with a choice, to any of them or split between two."""
        state = self.state
        if not state.config.colocated:
            return (Option("split", 0, self._prefill(record, state.prefills[0])),)
        if not state.config.conditional:
            worker = (state.arrivals - 1) % len(state.prefills)
            return (Option("stay", worker, self._prefill(record, state.prefills[worker]), worker),)
        here = Counter(other.decode_worker for other in state.records.values())
        pairs = [(prefill, decode) for decode in state.decodes for prefill in state.prefills]
        pairs.sort(key=lambda pair: pair[0].decode is not pair[1])  # of equal ways the one without a hand-off
        return tuple(self._option(record, prefill, decode, here) for prefill, decode in pairs)

    def _option(
        self, record: Record, prefill: PrefillWorkerState, decode: DecodeWorkerState, here: Counter[int | None]
    ) -> Option:
        """Prefill on one worker, decode on the same or another: its own time, and the time that it takes from the rows
        that decode beside it. Later prompts will take their share of its decode, by the share that they had so far.
        `here` counts the open requests that decode on each worker, or will."""
        stays, rows = prefill.decode is decode, here[decode.name.index]
        beside = here[prefill.name.index]
        terms = self._prefill(record, prefill, beside)
        if terms:
            most, tokens = self.state.config.max_batch, len(record.job.prompt) + record.left
            _, per_row, per_token = decode.speed.weights
            row_s = max(0.0, per_row + per_token * tokens / 1000)
            step_s = decode.step_s(min(rows + 1, most))
            kept = decode.composer is not None  # budgets keep the gaps of the rows beside a prefill within the target
            busy = 0.0 if kept else min(self.state.prefills[decode.name.index].busy, 0.9)
            decode_s = record.left * step_s / (1 - busy)
            wait_ns = 0 if stays else self._passes_beside_ns(record, decode, sum(ns for _, ns in terms))
            terms += (
                ("hand-off", 0 if stays else self._hand_off_ns(record.prefill_target, terms[1][1])),
                ("place in the batch", round(1e9 * max(0, rows + 1 - most) * decode_s / most)),
                ("passes beside its decode", wait_ns),
                ("decode", round(1e9 * decode_s)),
                ("rows beside its prefill", 0 if kept else self._lost_ns(record, prefill, terms[1][1], here)),
                ("rows beside its decode", round(1e9 * record.left * row_s * min(rows, most))),
            )
        return Option("stay" if stays else "split", prefill.name.index, terms, decode.name.index)

    def _passes_beside_ns(self, record: Record, decode: DecodeWorkerState, after_ns: int) -> int:
        """What it waits after a hand-off for the prompts that its decode worker still has to prefill then: a token
        comes with each of their passes."""
        worker, budget = self.state.prefills[decode.name.index], self.state.config.chunk_tokens
        each_ns = self._time_ns(worker, budget, budget)
        left_ns = max(0, self._queue_ns(worker) - after_ns)
        passes = min(record.left, -(-left_ns // max(1, each_ns)))
        return max(0, round(passes * (each_ns - 1e9 * decode.step_s(len(decode.rows) + 1))))

    def _lost_ns(self, record: Record, worker: PrefillWorkerState, own_ns: int, here: Counter[int | None]) -> int:
        """What the rows of its worker lose by a prefill, in whose mixed passes they have a token each; and those of
        other workers, which take longer meanwhile."""
        decode, config = present(worker.decode), self.state.config
        rows = min(here[decode.name.index], config.max_batch)
        passes = -(-record.prefill_target // config.chunk_tokens) if config.mixed_passes else 0
        elsewhere = sum(min(n, config.max_batch) for index, n in here.items() if index not in (None, decode.name.index))
        slowed_ns = own_ns * (1 - 1 / decode.speed.beside)
        return round(max(0, own_ns - passes * 1e9 * decode.step_s(rows)) * rows + slowed_ns * elsewhere)

    def _prefill(self, record: Record, worker: PrefillWorkerState, rows: int = 0) -> Terms:
        """Until its first token: the queue, and its own passes; nothing while no pass has been measured."""
        own_ns = self._passes_ns(worker, record.prefill_target, rows)
        parts = ("queue", self._queue_ns(worker, rows)), ("prefill", own_ns)
        return parts if self.state.speed_of(worker).seen else ()

    def _queue_ns(self, worker: PrefillWorkerState, rows: int = 0) -> int:
        """Of the prompts that wait for it or are under way, shared with the workers that take from the same queue."""
        workers = [other for other in self.state.prefills if other.queue is worker.queue]
        tokens = worker.queue.tokens + sum(other.passing.tokens for other in workers if other.passing)
        return self._passes_ns(worker, tokens, rows) // len(workers)

    def _passes_ns(self, worker: PrefillWorkerState, tokens: int, rows: int) -> int:
        """Time of the passes over so many tokens, whose budget a target may limit where rows decode beside them; 0 for
        none, and while no pass has been measured."""
        config, decode = self.state.config, worker.decode
        budget = config.chunk_tokens
        if rows and decode is not None and decode.composer:
            budget = max(config.block_size, decode.composer.budget(self.state.speed_of(worker), rows, budget))
        return self._time_ns(worker, tokens, budget)

    def _time_ns(self, worker: PrefillWorkerState, tokens: int, budget: int) -> int:
        """Of passes of `budget` tokens, beside the rows of other workers; 0 while no pass has been measured."""
        passes = -(-tokens // budget)
        beside = any(decode.rows and decode is not worker.decode for decode in self.state.decodes)
        seconds = passes * self.state.speed_of(worker).predict(0, tokens // max(1, passes), beside)
        return max(0, round(1e9 * seconds))

    def _hand_off_ns(self, tokens: int, prefill_ns: int) -> int:
        """What its hand-off takes beyond its prefill, behind the hand-offs that are open."""
        state = self.state
        blocks = sum(t.blocks for t in state.transfers.values() if not t.aborted)
        size = state.config.block_size * state.token_bytes
        own_ns = state.costs.hand_off_ns(blocks_for(tokens, state.config.block_size) * size)
        ahead_ns = state.costs.hand_off_ns(blocks * size)
        hidden_ns = 0 if state.config.route == "bulk" else prefill_ns
        return max(own_ns // state.layers, ahead_ns + own_ns - hidden_ns)
