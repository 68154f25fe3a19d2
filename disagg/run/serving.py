"""The requests of one `serve`: submitted when they arrive, waited for, and cancelled by an interrupt."""

from collections.abc import Callable

from disagg.plan.commands import Ended
from disagg.plan.errors import EngineError
from disagg.plan.request import Finish, Job, Request
from disagg.run.clock import now_ns
from disagg.run.handle import Handle
from disagg.run.loop import EngineLoop
from disagg.run.machine.notebook import tell_interrupt
from disagg.trace.results import Result, Run

NewHandle = Callable[[Request, Job, int], Handle]  # of a request that arrives at this time, in ns


class ServedRun:
    """On the thread of its caller. The core knows the handles as `served`, and sets `over` where no more may begin."""

    def __init__(self, loop: EngineLoop, requests: list[Request], jobs: list[Job], new_handle: NewHandle) -> None:
        self._loop, self._requests, self._jobs, self._new_handle = loop, requests, jobs, new_handle
        self._handles: dict[int, Handle] = {}
        self._told = True  # no interrupt that the caller's notebook has to hear of

    def run(self, record: bool) -> Run:
        """To the end of all, or of what is open when it is interrupted; EngineError if the engine breaks."""
        loop, core, start = self._loop, self._loop.core, now_ns()
        core.over.clear()
        core.served = self._handles
        loop.ask(lambda: core.recorder.begin(start, record, beside=bool(core.handles)))
        if core.closed or core.broken:  # since the check, and before `over` was cleared
            core.over.set()
        interrupted = self._serve(start)
        results = [
            self._handles[index].result()
            if index in self._handles
            else Result(-1, len(job.prompt), start, finish_reason=Finish.CANCELLED.value)
            for index, job in enumerate(self._jobs)
        ]
        cut = core.over.is_set() and any(result.finish_reason == Finish.CANCELLED.value for result in results)
        run = loop.ask(lambda: core.recorder.run(core.config, results, interrupted or cut))
        if core.broken:
            error = EngineError(f"the engine is broken and must be rebuilt: {core.broken}")
            error.run = run
            raise error
        if not self._told:
            tell_interrupt(run)
        return run

    def _serve(self, start_ns: int) -> bool:
        """Was it interrupted? No request of it is open any more."""
        over, interrupted = self._loop.core.over, False
        try:
            for index in sorted(range(len(self._requests)), key=lambda i: self._requests[i].arrival_s):
                arrival = start_ns + round(self._requests[index].arrival_s * 1e9)
                if over.wait(max(0, arrival - now_ns()) / 1e9):
                    interrupted = True
                    break
                self._submit(index, arrival)
            for handle in self._handles.values():
                if over.is_set():  # also one that was submitted while the others were cancelled
                    handle.cancel()
                handle.result()
        except KeyboardInterrupt:
            interrupted = True
            for handle in self._handles.values():
                handle.cancel()
            for handle in self._handles.values():
                handle.result()
            self._told = False
        return interrupted

    def _submit(self, index: int, arrival_ns: int) -> None:
        """Starts a request; its handle is `served[index]` from then on, whatever interrupts this call."""
        loop, core, job = self._loop, self._loop.core, self._jobs[index]
        handle = self._new_handle(self._requests[index], job, arrival_ns)

        def begin() -> None:
            try:
                core.admit(job, handle, run=True)
            except EngineError:  # closed or broken since it was asked for: it never was under way
                handle.end(Ended(-1, Finish.CANCELLED, None, now_ns(), ()))

        try:
            self._handles[index] = handle
            loop.call(begin, changes=True)
        except KeyboardInterrupt:  # it may be under way or not; either way the run does not wait for it
            self._handles.pop(index, None)
            loop.cancel(handle)
            raise
