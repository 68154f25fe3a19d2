"""What pictures of memories share: their names, a colour and number a request, and sentences on who holds what."""

from disagg.plan.preemption import Arm
from disagg.show.plots.palette import REQUESTS
from disagg.show.plots.summaries import milliseconds, numbers_of, plural
from disagg.trace.block_map import Decision, PageMap, decisions
from disagg.trace.results import Run

STATE_NAMES = {"free": "free", "in_flight": "in flight", "used": "used", "quarantined": "quarantined"}


class BlockView:
    """What both pictures need of a run: its block map, names of memories, and numbers of requests."""

    def __init__(self, run: Run) -> None:
        self.run, self.map = run, PageMap(run.timeline)
        self.numbers = numbers_of(run)
        self.decisions = decisions(run.results, run.choices)
        self.pools = [pool for pool in self.map.sizes if self.map.touched(pool)]
        roles = [pool.split()[0] for pool in self.map.sizes]
        self.names = {pool: memory_name(pool, roles.count(pool.split()[0]) > 1) for pool in self.map.sizes}

    def colour(self, owner: int) -> str:
        return REQUESTS[self.number(owner) % len(REQUESTS)]

    def number(self, owner: int) -> int:
        """Its place among the results; a request of another caller keeps the engine's number."""
        return self.numbers.get(owner, owner)

    def seconds(self, at_ns: int) -> float:
        return (at_ns - self.map.start_ns) / 1e9


def memory_name(pool: str, several: bool) -> str:
    role, _, number = pool.partition(" ")
    return "host memory" if role == "host" else f"{role} device {number}" if several else f"{role} device"


def decision_words(view: BlockView, decision: Decision) -> str:
    choice = decision.choice
    costs = [
        none if cost_ns is None else f"{milliseconds(cost_ns / 1e9)} to {act}"
        for cost_ns, act, none in (
            (choice.spill_ns, "spill and fetch", "no room in host memory to spill"),
            (choice.recompute_ns, "compute again", "no prefill speed known yet to compute again"),
        )
    ]
    verb = "was spilled" if choice.arm is Arm.SPILL else "is computed again"
    who = f"request {view.number(choice.request)} ({plural(choice.tokens, 'token')})"
    return f"at {view.seconds(decision.at_ns):.2f} s {who} lost its blocks and {verb}: {', '.join(costs)}"


def counts_words(view: BlockView, at_ns: int) -> str:
    parts = []
    for pool, counts in view.map.counts_at(at_ns).items():
        special = [f"{n} {STATE_NAMES[s]}" for s, n in counts.items() if s in ("in_flight", "quarantined") and n]
        held = sum(counts.values()) - counts["free"]
        within = f" ({', '.join(special)})" if special else ""
        parts.append(f"{view.names[pool]} {held} of {view.map.sizes[pool]}{within}")
    return f"blocks held: {', '.join(parts)}"


def owners_words(view: BlockView, at_ns: int) -> str:
    parts = []
    for pool, blocks in view.map.at(at_ns).items():
        held = [(view.number(h.owner), STATE_NAMES[h.state]) for h in blocks if h.owner is not None]
        each = [f"request {owner} {held.count((owner, state))} {state}" for owner, state in sorted(set(held))]
        parts.append(f"{view.names[pool]}: {', '.join(each) or 'all free'}")
    return "; ".join(parts)
