"""One controller's open requests, transfers, blocks and deadlines, as its log shows them to the detectors."""

from disagg.monitor.block_monitor import BlockMonitor
from disagg.monitor.request_monitor import RequestMonitor, RequestView
from disagg.monitor.transfer_monitor import Carried, TransferMonitor
from disagg.monitor.violation import Report
from disagg.monitor.wait_monitor import WaitMonitor
from disagg.plan.config import Config


class LogView:
    """`report` raises. Times in ns on the controller's clock."""

    def __init__(self, config: Config, layers: int, report: Report) -> None:
        self.report = report
        assert config.block_size is not None, "a controller's config has its block size filled in"
        self.block_size = config.block_size
        self.blocks = BlockMonitor(config, report)
        self.transfers = TransferMonitor(layers, self.blocks, report)
        self.requests = RequestMonitor(report)
        self.waiting = WaitMonitor(config, self.blocks, self.transfers, report)
        self.now_ns = 0
        self.excused = False  # a deadline has passed or a worker died: the controller may break
        self.finals: list[RequestView] = []  # requests whose prefill this event ended

    def carried_of(self, view: RequestView) -> Carried | None:
        return None if view.transfer is None else self.transfers.open.get(view.transfer)

    def begin(self, *what: object) -> None:
        self.waiting.begun[what] = self.now_ns

    def complete(self, carried: Carried, view: RequestView) -> None:
        self.close(carried)
        view.since_ns = self.now_ns
        if carried.target == "host":
            view.paged = True
        else:
            view.arrived, view.due, view.paged = True, carried.due, False

    def close(self, carried: Carried) -> None:
        self.transfers.close(carried)
        self.waiting.begun.pop(("transfer", carried.id), None)

    def check_landed(self, view: RequestView, what: str, blocks: tuple[int, ...]) -> None:
        """Landing: these blocks hold all K/V of the request."""
        if (carried := self.carried_of(view)) is not None:
            self.transfers.check_complete(carried, what)
        self.report("Landing", f"{what}, but no transfer of it has landed whole", view.job.id, blocks)
