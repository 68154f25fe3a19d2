"""OneEnd: every request ends once, by legal moves, for a reason in the log; a failure ends only its own requests."""

from dataclasses import dataclass

from disagg.monitor.violation import Report
from disagg.plan import commands as cmd
from disagg.plan.request import LEGAL_MOVES, Finish, Job, Stage


@dataclass(eq=False)
class RequestView:
    job: Job
    since_ns: int  # since its last change
    given: int = 0  # tokens emitted
    last: int | None = None
    prefilling: bool = False  # from its first chunk to the end of its last
    prefilled: bool = False
    stays: bool = False  # its last prefill was on a decode device
    transfer: int | None = None  # the open one, else the last one
    arrived: bool = False  # a decode device has all its K/V
    due: int | None = None  # blocks that arrived there, until the request joins
    paged: bool = False  # host memory has all its K/V
    running: bool = False
    cancelled: bool = False

    def is_due(self, finish: Finish, error: str | None) -> bool:
        """Whether the log has a reason for this finish."""
        match finish:
            case Finish.EOS:
                return self.last in self.job.eos_ids
            case Finish.LENGTH:
                return self.given == self.job.max_new_tokens
            case Finish.CANCELLED:
                return self.cancelled
            case Finish.REJECTED:
                return bool(error) and not (self.given or self.prefilling or self.transfer)  # it has cost nothing
        return bool(error)


class RequestMonitor:
    """The open requests, and those that the current event may or must end. `report` raises."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.open: dict[int, RequestView] = {}
        self.left: dict[int, RequestView] = {}  # ended by this event
        self.may_fail: dict[int, None] | None = {}  # None: any request
        self.must_end: list[int] = []
        self._bystander: int | None = None

    def begin(self) -> None:
        self.must_end, self._bystander, self.may_fail = [], None, {}
        self.left.clear()

    def submit(self, job: Job, now_ns: int) -> None:
        self.open.setdefault(job.id, RequestView(job, now_ns))
        self.fails(job.id)

    def fails(self, request: int, surely: bool = False) -> None:
        """The event may fail the request; with `surely` it must."""
        if self.may_fail is not None:
            self.may_fail[request] = None
        if surely and request in self.open:
            self.must_end.append(request)

    def get(self, request: int, what: str) -> RequestView:
        """The view of an open request; a command that names any other is a violation."""
        view = self.open.get(request)
        if view is None:
            self._report("OneEnd", f"request {request} {what} after its end, or before it came", request)
        return view

    def emit(self, command: cmd.Emit) -> None:
        for request, token in zip(command.requests, command.tokens, strict=True):
            view = self.get(request, "gets a token")
            view.given += 1
            view.last = token

    def end(self, command: cmd.Ended) -> RequestView:
        request, finish = command.request, command.finish
        view = self.get(request, "ends")
        stages = [stage for _, stage in command.stages]
        for before, after in zip(stages, stages[1:], strict=False):
            if after not in LEGAL_MOVES[before]:
                self._report("OneEnd", f"{before.value} → {after.value} is no legal move", request)
        if (stages[0], stages[-1]) != (Stage.QUEUED, Stage.ENDED):
            self._report("OneEnd", "its stages do not go from queued to ended", request)
        if not view.is_due(finish, command.error):
            text = f"it ends as {finish.value} after {view.given} tokens, and nothing in the log asks for that"
            self._report("OneEnd", text, request)
        if finish is Finish.FAILED and self.may_fail is not None and request not in self.may_fail:
            self._bystander = request
        self.left[request] = self.open.pop(request)
        return view

    def check_after(self) -> None:
        if self._bystander is not None:
            self._report("OneEnd", "a bystander fails: it was not in what failed", self._bystander)
        for request in self.must_end:
            if request in self.open:
                self._report("OneEnd", "its pass or step failed, and it goes on", request)
