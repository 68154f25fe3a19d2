"""The detector Watchdog: deadlines of what is under way, and which blocks each request waits for."""

from typing import Any, Never

from disagg.monitor.block_monitor import BlockMonitor
from disagg.monitor.request_monitor import RequestView
from disagg.monitor.transfer_monitor import TransferMonitor
from disagg.monitor.violation import Report
from disagg.plan import commands as cmd
from disagg.plan.config import Config
from disagg.trace.spans import BlockMove
from disagg.trace.why import Wait, cycle_in_words, cycle_of

NAMED = 4


class WaitMonitor:
    """`begun`: ("pass", worker), ("step", worker, number) or ("transfer", id) → its start in ns."""

    def __init__(self, config: Config, blocks: BlockMonitor, transfers: TransferMonitor, report: Report) -> None:
        self._config, self._blocks, self._transfers, self._report = config, blocks, transfers, report
        self._limit = round(config.watchdog_s * 1e9)
        self.begun: dict[tuple[Any, ...], int] = {}  # the earliest first
        self.passes: dict[cmd.Worker, cmd.Prefill] = {}  # by prefill worker

    def overdue(self, now_ns: int) -> bool:
        return bool(self.begun) and next(iter(self.begun.values())) + self._limit <= now_ns

    def postpone(self, lost_ns: int) -> None:
        """Moves all deadlines by time in which no thread could run."""
        self.begun = {what: since + lost_ns for what, since in self.begun.items()}

    def check(self, now_ns: int, views: dict[int, RequestView]) -> None:
        if not self.overdue(now_ns):
            return
        what, since = next(iter(self.begun.items()))
        age = f"{(now_ns - since) / 1e9:g} s, longer than watchdog_s={self._config.watchdog_s:g}"
        requests = self._requests(what)
        text = f"{self._in_words(what, requests)} takes {age}; {self.in_words(now_ns, views)}"
        self._report("Watchdog", text, requests[0] if requests else None)

    def check_progress(self, now_ns: int, views: dict[int, RequestView]) -> None:
        """Raises if a request is open while nothing is under way."""
        if views and not self.begun:
            self._stuck(now_ns, views)

    def broken(self, now_ns: int, views: dict[int, RequestView], freed: list[BlockMove]) -> None:
        """The controller broke without a cause: reports the waits before it ended the requests and freed the blocks."""
        for move in freed:
            if move.owner is not None:
                held = self._blocks.holds.setdefault(move.owner, {}).setdefault(move.pool, {})
                held.update(dict.fromkeys(move.blocks))
        self._stuck(now_ns, views)

    def _stuck(self, now_ns: int, views: dict[int, RequestView]) -> Never:
        text = f"nothing is under way; {self.in_words(now_ns, views)}"
        self._report("Watchdog", text, next(iter(views), None))

    def in_words(self, now_ns: int, views: dict[int, RequestView]) -> str:
        """Gates, holders and ages of the first few waiting requests, and their cycle if there is one."""
        waits = {request: self._wait(view) for request, view in views.items() if not view.running}
        lines = [wait.in_words(now_ns) for wait in list(waits.values())[:NAMED]]
        return ". ".join([*lines, *filter(None, [cycle_in_words(cycle_of(waits))])]) or "no other request waits"

    def _wait(self, view: RequestView) -> Wait:
        request, blocks = view.job.id, self._blocks
        held = {pool: len(owned) for pool, owned in blocks.holds.get(request, {}).items()}
        stage, role = self._gate(view, held)
        holders = {
            other: sum(len(owned) for pool, owned in pools.items() if pool.startswith(role))
            for other, pools in blocks.holds.items()
            if any(pool.startswith(role) for pool in pools)
        }
        free = sum(sums["free"] for pool, sums in blocks.sums.items() if pool.startswith(role))
        return Wait(request, stage, f"{role} blocks", view.since_ns, held, holders, free)

    def _gate(self, view: RequestView, held: dict[str, int]) -> tuple[str, str]:
        """The request's stage by the log, and the memory that it needs next."""
        here = "decode" if self._config.colocated or view.stays else "prefill"
        if view.arrived:
            return "landed", "decode"
        if view.paged:
            return "spilled", "decode"
        if view.prefilled:
            return "handing off", "decode"
        if view.prefilling:
            return "prefilling", here
        if view.transfer in self._transfers.open:
            return "spilling", "decode"
        return "queued", "decode" if any(pool.startswith(here) for pool in held) else here

    def _requests(self, what: tuple[Any, ...]) -> list[int]:
        kind, key = what[:2]
        if kind == "pass":
            return [chunk.request for chunk in self.passes[key].chunks]
        return self._blocks.batches[key].running() if kind == "step" else [self._transfers.open[key].request]

    def _in_words(self, what: tuple[Any, ...], requests: list[int]) -> str:
        kind, key = what[:2]
        named = ", ".join(map(str, requests))
        if kind != "transfer":
            return f"a {kind} of {key} with requests {named}"
        carried = self._transfers.open[key]
        return f"the {carried.route} transfer of request {named} from {carried.source} to {carried.target}"
