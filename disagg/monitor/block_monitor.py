"""Three detectors of memory, Conservation, Alias and InUse: each block's owner, and what still reads or writes it.

The detectors rebuild owners from the moves that pools report, and uses from commands and the events that end them.
They read no pool and no table of the controller.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from disagg.monitor.violation import Report
from disagg.plan.blocks import STATES
from disagg.plan.commands import Decode, Worker
from disagg.plan.config import Config
from disagg.trace.spans import BlockMove

FREE, IN_FLIGHT, USED, QUARANTINED = STATES
CHANGES = {
    FREE: (IN_FLIGHT,),
    IN_FLIGHT: (IN_FLIGHT, USED, QUARANTINED, FREE),
    USED: (QUARANTINED, FREE),
    QUARANTINED: (FREE,),
}


def place(worker: Worker) -> str:
    return "host" if worker.role == "host" else str(worker)


def pool_sizes(config: Config) -> dict[str, int]:
    sizes = {f"prefill {index}": config.prefill_blocks or 0 for index in range(config.prefill_workers)}
    sizes |= {f"decode {index}": config.decode_blocks or 0 for index in range(config.decode_workers)}
    return {**sizes, "host": config.host_blocks or 0}


@dataclass(eq=False)
class RowBlocks:
    """A request in a decode batch: steps [joined, left) read and write these blocks."""

    joined: int
    blocks: dict[int, None]
    left: int | None = None


@dataclass(eq=False)
class Batch:
    """A decode worker's batch, and its steps in flight."""

    pool: str
    steps: deque[int] = field(default_factory=deque)
    rows: dict[int, RowBlocks] = field(default_factory=dict)
    leaving: dict[int, RowBlocks] = field(default_factory=dict)
    gone: dict[int, None] = field(default_factory=dict)  # requests that have ended since the last step

    def uses(self, request: int, block: int) -> bool:
        """Whether a step in flight reads or writes this block for the request."""
        row = self.rows.get(request) or self.leaving.get(request)
        if row is None or not self.steps or block not in row.blocks:
            return False
        return self.steps[-1] >= row.joined and (row.left is None or self.steps[0] < row.left)

    def running(self) -> list[int]:
        """Requests of the oldest step in flight."""
        step, rows = self.steps[0], [*self.rows.items(), *self.leaving.items()]
        return [r for r, row in rows if row.joined <= step and (row.left is None or step < row.left)]

    def take(self, command: Decode) -> None:
        """Applies the rows that leave, join and grow with a new step."""
        for request in command.left:
            row = self.rows.pop(request, None)
            self.gone.pop(request, None)
            if row is not None and self.steps:
                row.left = command.step
                self.leaving[request] = row
        for join in command.joins:
            self.rows[join.request] = RowBlocks(command.step, dict.fromkeys(join.blocks))
        for request, block in command.grown:
            self.rows[request].blocks[block] = None
        self.steps.append(command.step)

    def end(self) -> None:
        ended = self.steps.popleft()
        for request in [r for r, row in self.leaving.items() if row.left is not None and row.left <= ended + 1]:
            del self.leaving[request]


class BlockMonitor:
    """Follows every move, and every pass, step and copy that begins or ends. `report` raises."""

    def __init__(self, config: Config, report: Report) -> None:
        self._report = report
        self.sizes = pool_sizes(config)
        self._state = {pool: [FREE] * size for pool, size in self.sizes.items()}
        self._owner: dict[str, list[int | None]] = {pool: [None] * size for pool, size in self.sizes.items()}
        self.sums = {pool: {**dict.fromkeys(STATES, 0), FREE: size} for pool, size in self.sizes.items()}
        self._touched: dict[str, dict[int, int]] = {pool: {} for pool in self.sizes}  # block → passes and copies
        self.holds: dict[int, dict[str, dict[int, None]]] = {}  # request → pool → its blocks
        workers = [Worker("decode", index) for index in range(config.decode_workers)]
        self.batches = {worker: Batch(str(worker)) for worker in workers}
        self._batch_of = {batch.pool: batch for batch in self.batches.values()}
        self._ended: dict[int, None] = {}  # ended requests that still hold blocks

    def moved(self, move: BlockMove) -> None:
        pool, state, owner, blocks = move.pool, move.state, move.owner, move.blocks
        size = self.sizes.get(pool, 0)
        if state not in CHANGES or (state == FREE) != (owner is None):
            self._report("Conservation", f"{pool}: {state} blocks owned by {owner}", owner, blocks)
        states, owners, sums = self._state[pool], self._owner[pool], self.sums[pool]
        for block in blocks:
            if not 0 <= block < size:
                self._report("Conservation", f"{pool} has no block {block}, only {size} of them", owner, blocks)
            before, had = states[block], owners[block]
            if had is not None and owner is not None and owner != had:
                self._report("Alias", f"{pool}: block {block} is request {had}'s and becomes {owner}'s", had, blocks)
            if state == before == FREE:
                self._report("Alias", f"{pool}: block {block} is freed twice", owner, blocks)
            if state not in CHANGES[before]:
                self._report("Conservation", f"{pool}: block {block} goes from {before} to {state}", had, blocks)
            if (state == FREE or before == FREE) and (what := self._user(pool, had, block)):
                done = "freed" if state == FREE else f"given to request {owner}"
                self._report("InUse", f"{pool}: block {block} is {done} while {what} it", had, blocks)
            states[block], owners[block] = state, owner
            sums[before] -= 1
            sums[state] += 1
            if state == FREE and had is not None:
                self._let_go(had, pool, block)
            elif before == FREE and owner is not None:
                self.holds.setdefault(owner, {}).setdefault(pool, {})[block] = None

    def owner(self, pool: str, blocks: tuple[int, ...]) -> int | None:
        owners = self._owner.get(pool, ())
        return owners[blocks[0]] if blocks and 0 <= blocks[0] < len(owners) else None

    def _let_go(self, request: int, pool: str, block: int) -> None:
        held = self.holds[request]
        del held[pool][block]
        if not held[pool]:
            del held[pool]
        if not held:
            del self.holds[request]

    def _user(self, pool: str, owner: int | None, block: int) -> str:
        """What reads or writes the block, in words; "" where nothing does."""
        if block in self._touched[pool]:
            return "a pass or a copy uses"
        batch = self._batch_of.get(pool)
        in_step = batch is not None and owner is not None and batch.uses(owner, block)
        return f"step {batch.steps[0]} uses" if batch is not None and in_step else ""

    def own(self, what: str, request: int, pool: str, blocks: Iterable[int]) -> None:
        """Checks the blocks that a command names: the request owns each, and none comes twice."""
        owners, size, blocks = self._owner[pool], self.sizes[pool], tuple(blocks)
        if len(dict.fromkeys(blocks)) != len(blocks):
            self._report("Alias", f"{what}: a block of {pool} stands twice in {list(blocks)}", request, blocks)
        for block in blocks:
            if not 0 <= block < size or owners[block] != request:
                whose = owners[block] if 0 <= block < size else "none"
                text = f"{what} names block {block} of {pool} for request {request}, but its owner is {whose}"
                self._report("Alias" if isinstance(whose, int) else "InUse", text, request, blocks)

    def touch(self, pool: str, blocks: Iterable[int]) -> None:
        touched = self._touched[pool]
        for block in blocks:
            touched[block] = touched.get(block, 0) + 1

    def leave(self, pool: str, blocks: Iterable[int]) -> None:
        touched = self._touched[pool]
        for block in blocks:
            touched[block] -= 1
            if not touched[block]:
                del touched[block]

    def ended(self, request: int) -> None:
        """A request has ended: its unused blocks must be freed, and no later step may include it."""
        if request in self.holds:
            self._ended[request] = None
        for batch in self.batches.values():
            if request in batch.rows:
                batch.gone[request] = None

    def check_ended(self) -> None:
        """Blocks of ended requests must be free once nothing uses them."""
        for request in list(self._ended):
            if request not in self.holds:
                del self._ended[request]
            for pool, blocks in self.holds.get(request, {}).items():
                if not any(self._user(pool, request, block) for block in blocks):
                    sums = " + ".join(f"{count} {state}" for state, count in self.sums[pool].items())
                    text = f"request {request} has ended and nothing uses its blocks of {pool}, yet they are not free"
                    self._report("Conservation", f"{text}: {sums} of {self.sizes[pool]}", request, tuple(blocks))

    def compare(self, pool: str, counts: dict[str, int]) -> None:
        """Compares a pool's counts with its moves: free + used + in flight + quarantined = total."""
        if counts != self.sums[pool] or sum(counts.values()) != self.sizes[pool]:
            self._report("Conservation", f"{pool} counts {counts}, its moves give {self.sums[pool]}", None, ())

    def drained(self) -> None:
        for request, pools in self.holds.items():
            for pool, blocks in pools.items():
                self._report("Drain", f"{len(blocks)} blocks of {pool} are never given back", request, tuple(blocks))
        for pool, touched in self._touched.items():
            if touched:
                self._report("Drain", f"something still uses blocks of {pool}", None, tuple(touched))
