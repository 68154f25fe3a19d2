"""Where a request goes: split or kept, on which worker, and whether K/V in host memory are fetched or computed again.

The estimates are here, the decision is the policy's. Both arms of a decision are recorded with their terms.
Notebook: notebooks/05_dynamic_batching.ipynb.
"""

from disagg.plan.blocks import blocks_for
from disagg.plan.commands import Placed, Turn
from disagg.plan.policy import Option
from disagg.plan.request import Finish, Record
from disagg.plan.state import ControllerState
from disagg.plan.worker_state import PrefillWorkerState

Terms = tuple[tuple[str, int], ...]


class Placement:
    def __init__(self, state: ControllerState) -> None:
        self.state = state

    def arrive(self, turn: Turn, record: Record) -> None:
        """A new request goes to the workers that only prefill, or stays where it will decode; or it is rejected."""
        state, options = self.state, self._options(record)
        choice = self.decide(turn, record, options, kept=len(options) > 1)
        if choice is None:
            return
        if choice.way == "stay":
            record.stays, record.decode_worker = True, choice.worker
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
        queue_ns, own_ns = costs.prefill_ns(state.backlog), costs.prefill_ns(context + 1)
        terms = () if queue_ns is None or own_ns is None else (("queue", queue_ns), ("prefill", own_ns))
        return self.decide(turn, record, (fetch, Option("recompute", 0, terms)))

    def _options(self, record: Record) -> tuple[Option, ...]:
        """Colocated, requests go round robin to the workers; with a choice, to any of them or to be split."""
        state = self.state
        if state.config.colocated:
            worker = (state.arrivals - 1) % len(state.locals)
            return (Option("stay", worker, self._stay(record, state.locals[worker])),)
        split = Option("split", 0, self._split(record))
        stays = [Option("stay", i, self._stay(record, worker)) for i, worker in enumerate(state.locals)]
        return (split, *stays)

    def _split(self, record: Record) -> Terms:
        """Until its K/V are on a decode worker: the queue, its passes, and what of the hand-off they do not hide."""
        state, worker = self.state, self.state.prefills[0]
        prefill_ns = self._passes_ns(worker, record.prefill_target, 0)
        if not prefill_ns:
            return ()
        queue_ns = self._passes_ns(worker, worker.queue.tokens, 0) // state.config.prefill_workers
        open_blocks = sum(t.blocks for t in state.transfers.values() if not t.aborted)
        ahead_ns = self._hand_off_ns(open_blocks * state.config.block_size)
        hidden_ns = 0 if state.config.route == "bulk" else prefill_ns
        own_ns = self._hand_off_ns(record.prefill_target)
        layer_ns = own_ns // state.layers
        return (
            ("queue", queue_ns),
            ("prefill", prefill_ns),
            ("hand-off", max(layer_ns, ahead_ns + own_ns - queue_ns - hidden_ns)),
        )

    def _stay(self, record: Record, worker: PrefillWorkerState) -> Terms:
        """Until it can decode here, and what its passes cost the rows that decode beside them."""
        decode = worker.decode
        assert decode is not None
        rows = len(decode.rows)
        prefill_ns = self._passes_ns(worker, record.prefill_target, rows)
        if not prefill_ns:
            return ()
        queue_ns = self._passes_ns(worker, worker.queue.tokens, rows)
        return ("queue", queue_ns), ("prefill", prefill_ns), ("rows beside", prefill_ns * rows)

    def _passes_ns(self, worker: PrefillWorkerState, tokens: int, rows: int) -> int:
        """Time of the passes over so many tokens; 0 for none, and while no pass has been measured."""
        if not tokens:
            return 0
        speed = self.state.speed_of(worker)
        passes, budget = -(-tokens // self.state.config.chunk_tokens), self.state.config.chunk_tokens
        return max(0, round(1e9 * passes * speed.predict(0, min(tokens, budget)))) if speed.seen else 0

    def _hand_off_ns(self, tokens: int) -> int:
        """Time of the K/V of so many tokens on the slower of the links that they pass."""
        return self.state.costs.hand_off_ns(tokens * self.state.token_bytes)


def _in_ms(ns: int | None) -> str:
    return "unknown" if ns is None else f"{ns / 1e6:.1f} ms"
