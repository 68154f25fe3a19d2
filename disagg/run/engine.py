"""The engine as users hold it: serve or submit requests, change settings, ask why one waits, close.

    with Engine(Config.preset("streamed")) as engine:
        run = engine.serve([Request("Why is the sky blue?", max_new_tokens=32)])

What it does happens on other threads: `run/loop.py` is the one that decides, workers and lanes carry it out.
Notebook: notebooks/00_start_here.ipynb.
"""

import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch

from disagg.monitor.seams import Seams
from disagg.monitor.violation import InvariantViolation
from disagg.plan import intake
from disagg.plan.config import Config
from disagg.plan.errors import EngineError
from disagg.plan.request import Job, Request, listed
from disagg.run.attention.choice import AttentionPath
from disagg.run.clock import now_ns
from disagg.run.gpu.thread_priority import share_the_interpreter
from disagg.run.handle import Handle
from disagg.run.loop import EngineLoop
from disagg.run.machine.devices import check_devices
from disagg.run.machine.notebook import close_rebound
from disagg.run.machine.open_engines import check_fork
from disagg.run.machine.sizes import Settings
from disagg.run.model.model import Model
from disagg.run.model.shared import check_named, load
from disagg.run.serving import ServedRun
from disagg.trace.results import Result, Run
from disagg.trace.why import why

if TYPE_CHECKING:
    from disagg.monitor.fault_plan import FaultPlan


class Engine:
    """Real workers under the controller. Close it, or use it in a `with`; calls of a closed one raise. One without
    references, also from handles of open requests, ends by itself."""

    def __init__(
        self,
        config: Config,
        model: Model | None = None,
        progress: Callable[[str], None] | None = None,
        faults: "FaultPlan | None" = None,
    ) -> None:
        """Without a `model` the config's is loaded; engines of one model in one process share its weights.
        `faults`: what is to go wrong on the way, for lessons and tests; CPU workers obey it.

        ConfigError where a device is not there, or the model is not the config's; EngineError where there is no room.
        """
        check_devices(config)
        check_fork(config.threads)
        if model is not None:
            check_named(config, model)
        close_rebound(self)
        torch.set_num_threads(config.threads)
        share_the_interpreter()
        self.model = model or load(config, config.decode_device)
        self._settings = Settings(config, self.model)
        progress = progress or (one_line if config.decode_device != "cpu" else lambda text: None)
        self._loop = loop = EngineLoop(
            self._settings.first, self.model, progress, Seams if faults is None else faults.injection
        )
        self._core = core = loop.core
        self.executor, self.controller, self.detectors = loop.executor, core.controller, core.detectors
        self.attention_path, self.seams = loop.executor.attention_path, loop.executor.seams
        self._serving: int | None = None  # the thread in `serve`
        self._closing = threading.RLock()
        self._gone = False  # has ended
        self._finalizer = weakref.finalize(self, loop.abandon)
        self._finalizer.atexit = False
        try:  # no memory for a replica, no thread, an interrupt: what was started stops
            loop.start()
            self.recorder = core.recorder
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> "Engine":
        if self.closed:
            self._core.check_open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        config, state = self.config, "closed" if self._core.closed else "open"
        devices = config.decode_device if config.colocated else f"{config.prefill_device} and {config.decode_device}"
        return f"Engine of {config.model} on {devices}: {f'broken, {self.broken}' if self.broken else state}"

    @property
    def config(self) -> Config:
        """The settings as they are now."""
        return self._core.config

    @property
    def breach(self) -> InvariantViolation | None:
        """What a detector saw, where one did; the engine is broken then."""
        return self._core.breach

    @property
    def broken(self) -> str | None:
        """Why nothing is served any more; None while all is well."""
        return self._core.broken

    @property
    def closed(self) -> bool:
        return self._core.closed

    @property
    def idle(self) -> bool:
        """Open, and without a request."""
        return not (self._core.closed or self._core.broken or self._core.handles or self._serving)

    # ---- what users call ---------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> Handle:
        """Starts one request now; RequestError where it can never be served."""
        loop = self._loop
        self._core.check_open()
        arrival_ns = now_ns()
        job = job_of(request, self.model, self.config.seed)
        handle = self._new_handle(request, job, arrival_ns)

        def begin() -> None:
            self._core.refuse([job])
            self._core.admit(job, handle, run=False)

        try:
            loop.ask(begin, changes=True)
        except KeyboardInterrupt:  # the caller gets no handle, so nothing else could end the request
            handle.cancel()
            raise
        return handle

    def serve(self, requests: Iterable[Request], record: bool = True) -> Run:
        """Serves requests at their arrival times and waits for all. An interrupt ends what is open, and returns (in a
        notebook *Run All* stops with the cell); so does a `close` by another thread; `run.interrupted` is set then.
        With `record=False` the run has no timeline, only results and counts.

        RequestError before anything starts where one of them can't be served; EngineError if the engine breaks.
        """
        loop = self._loop
        self._core.check_open()
        requests = listed(requests)
        prepared = [job_of(request, self.model, self.config.seed) for request in requests]
        here = threading.get_ident()
        with self._closing:
            if self._serving not in (None, here):  # this thread's own is what an interrupt left behind
                raise EngineError("this engine is serving already; wait for that run, or build a second engine")
            self._serving = here
        try:
            loop.ask(lambda: self._core.refuse(prepared))
            return ServedRun(loop, requests, prepared, self._new_handle).run(record)
        finally:
            self._core.served = {}
            loop.call(self.recorder.between_runs)  # before another thread's run begins
            self._serving = None

    def interrupt(self) -> None:
        """Ends the run that another thread serves, as an interrupt there would: `serve` returns with what there is."""
        self._core.interrupt()

    def open_handles(self) -> list[Handle]:
        return self._loop.open_handles()

    def why(self, request: int | Handle) -> str:
        """What an open request waits for, who holds that, and for how long; in words, as of the last event."""
        number = request.so_far.request if isinstance(request, Handle) else request
        return self._loop.ask(lambda: why(self.controller.state, number, now_ns()))

    def recorded(self, results: list[Result]) -> Run:
        """What was recorded of the run that is under way, or lately of requests outside of one."""
        return self._loop.ask(lambda: self.recorder.run(self.config, results))

    def retune(self, **changes: Any) -> None:
        """Changes settings while it runs; what can't change is refused. Shrinking a pool drains it first."""
        self._core.check_open()
        self._settings.measure_for(self.config, changes)

        def change() -> None:
            self._core.check_open()
            config = self._settings.changed(self.config, changes)
            self.controller.check_live(config)
            if streams := self.executor.transfers.streams:
                streams.check(config)
            self._settings.check_growth(config, captured=self.attention_path is AttentionPath.PAGED)
            self._core.retune(config)

        self._loop.ask(change, changes=True)

    def cancel(self, handle: Handle) -> None:
        """Ends its request as cancelled, as `handle.cancel()` does."""
        self._loop.cancel(handle)

    def close(self) -> None:
        """Ends what is open as cancelled, and all threads within a step. Closing twice does nothing.

        An interrupt is raised when all that has ended; after a second one, closing again goes on.
        """
        try:
            self._close()
        except KeyboardInterrupt:
            self._close()
            raise

    def _close(self) -> None:
        """May be cut short anywhere, and called again."""
        if self._loop.forked:
            return
        self._loop.shut_and_wait()
        with self._closing:
            if not self._gone:
                self._end()
                self._gone = True

    def _end(self) -> None:
        self._loop.end()
        self._finalizer.detach()

    # ---- requests ----------------------------------------------------------------------------------------------------

    def _new_handle(self, request: Request, job: Job, arrival_ns: int) -> Handle:
        prompt = request.prompt if isinstance(request.prompt, str) else ""
        return Handle(Result(-1, len(job.prompt), arrival_ns, prompt=prompt), self.model, self.cancel)


def job_of(request: Request, model: Model, seed: int = 0) -> Job:
    """A user's request as the controller sees it; its id and arrival follow when it is submitted. `seed` is for a
    request that names none. RequestError where the model can't take it."""
    vocab_size: Any = model.vocab_size
    limits = intake.Limits(model.name, vocab_size, model.context_limit, frozenset(model.eos_ids))
    return intake.job_of(request, limits, model.encode, seed)


def one_line(text: str) -> None:
    """Progress on one line of the terminal; an empty text clears it."""
    sys.stderr.write(f"\r\033[K{text}")
    sys.stderr.flush()
