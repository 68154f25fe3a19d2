"""Where a request goes: split or kept, on which worker, and whether K/V in host memory are fetched or computed again.

The estimates are here, the decision is the policy's. Both arms of a decision are recorded with their terms.
Notebook: notebooks/05_dynamic_batching.ipynb.
"""

from collections import Counter

from disagg.plan.blocks import blocks_for
from disagg.plan.commands import Placed, Turn
from disagg.plan.policy import Option
from disagg.plan.request import Finish, Record
from disagg.plan.state import ControllerState
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
        costs = ", ".join(f"{option.way} {_in_ms(option.ns)}" for option in options)
        state.because("place", request=record.id, way=choice.way, costs=costs)
        return choice

    def back(self, turn: Turn, record: Record) -> Option | None:
        """K/V in host memory, for which decode has room: fetched, or computed again."""
        state, context = self.state, record.context
        ahead = sum(t.blocks for t in state.transfers.values() if t.route == "fetch" and not t.aborted)
        size, costs = state.config.block_size * state.token_bytes, state.costs
        copy = ("copy", costs.copy_ns(costs.back, blocks_for(context, state.config.block_size) * size))
        fetch = Option("fetch", 0, (copy, ("copies ahead", costs.copy_ns(costs.back, ahead * size))))
        queue_ns, own_ns = state.prefill_ns(state.backlog), state.prefill_ns(context + 1)
        terms = () if queue_ns is None or own_ns is None else (("queue", queue_ns), ("prefill", own_ns))
        return self.decide(turn, record, (fetch, Option("recompute", 0, terms)))

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
            step_s = max(0.0, decode.speed.predict(min(rows + 1, most), round((rows + 1) * decode.mean_tokens())))
            elsewhere = min(sum(here.values()) - beside, most * (len(self.state.decodes) - 1))
            passes = -(-record.prefill_target // self.state.config.chunk_tokens) * self.state.config.mixed_passes
            own_step_s = max(0.0, decode.speed.predict(min(beside, most), round(beside * decode.mean_tokens())))
            lost_ns = max(0, terms[1][1] - round(1e9 * passes * own_step_s)) * min(
                beside, most
            )  # a pass gives each one
            slowed_ns = terms[1][1] * elsewhere * (1 - 1 / decode.speed.beside)  # by a worker that computes elsewhere
            kept = decode.composer is not None  # budgets keep the gaps of the rows beside a prefill within the target
            busy = 0.0 if kept else min(self.state.prefills[decode.name.index].busy, 0.9)
            decode_s = record.left * step_s / (1 - busy)
            terms += (
                ("hand-off", 0 if stays else self._hand_off_ns(record.prefill_target, terms[1][1])),
                ("place in the batch", round(1e9 * max(0, rows + 1 - most) * decode_s / most)),
                ("decode", round(1e9 * decode_s)),
                ("rows beside its prefill", 0 if kept else round(lost_ns + slowed_ns)),
                ("rows beside its decode", round(1e9 * record.left * row_s * min(rows, most))),
            )
        return Option("stay" if stays else "split", prefill.name.index, terms, decode.name.index)

    def _prefill(self, record: Record, worker: PrefillWorkerState, rows: int = 0) -> Terms:
        """Until its first token: the queue, and its own passes; nothing while no pass has been measured."""
        own_ns = self._passes_ns(worker, record.prefill_target, rows)
        workers = [other for other in self.state.prefills if other.queue is worker.queue]
        tokens = worker.queue.tokens + sum(other.passing.tokens for other in workers if other.passing)
        queue_ns = self._passes_ns(worker, tokens, rows) // len(workers)
        return (("queue", queue_ns), ("prefill", own_ns)) if self.state.speed_of(worker).seen else ()

    def _passes_ns(self, worker: PrefillWorkerState, tokens: int, rows: int) -> int:
        """Time of the passes over so many tokens, whose budget a target may limit where rows decode beside them; 0 for
        none, and while no pass has been measured."""
        config, decode = self.state.config, worker.decode
        budget = config.chunk_tokens
        if rows and decode is not None and decode.composer:
            budget = max(config.block_size, decode.composer.budget(self.state.speed_of(worker), rows, budget))
        return self.state.prefill_ns(tokens, worker, budget) or 0

    def _hand_off_ns(self, tokens: int, prefill_ns: int) -> int:
        """What its hand-off takes beyond its prefill, behind the hand-offs that are open."""
        state = self.state
        blocks = sum(t.blocks for t in state.transfers.values() if not t.aborted)
        size = state.config.block_size * state.token_bytes
        own_ns = state.costs.hand_off_ns(blocks_for(tokens, state.config.block_size) * size)
        ahead_ns = state.costs.hand_off_ns(blocks * size)
        hidden_ns = 0 if state.config.route == "bulk" else prefill_ns
        return max(own_ns // state.layers, ahead_ns + own_ns - hidden_ns)


def _in_ms(ns: int | None) -> str:
    return "unknown" if ns is None else f"{ns / 1e6:.1f} ms"
