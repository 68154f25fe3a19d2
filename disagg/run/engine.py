"""The engine: one thread that feeds events to the controller and hands its commands to workers and transfers.

    with Engine(Config.preset("streamed")) as engine:
        run = engine.serve([Request("Why is the sky blue?", max_new_tokens=32)])

Notebook: notebooks/00_start_here.ipynb.
"""

import atexit
import contextlib
import itertools
import queue
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future

import torch

from disagg.plan import commands as cmd
from disagg.plan import events as ev
from disagg.plan.config import Config
from disagg.plan.controller import Controller
from disagg.plan.detectors import Breach, Watch
from disagg.plan.errors import EngineError, RequestError
from disagg.plan.faults import FaultPlan
from disagg.plan.recorder import Recorder
from disagg.plan.request import Finish, Job, Request, listed
from disagg.plan.results import Result, Run
from disagg.plan.why import why
from disagg.run.attention import pick_kernel
from disagg.run.clock import now_ns
from disagg.run.executor import Executor
from disagg.run.handle import Handle
from disagg.run.injection import Injection
from disagg.run.intake import job_of
from disagg.run.machine import in_words as machine_in_words
from disagg.run.model import Model
from disagg.run.placing import check_devices, held_in_words, load
from disagg.run.punctual import ask_for_short_slices, share_the_interpreter
from disagg.run.sizes import Settings
from disagg.run.sm_split import in_words as sms_in_words
from disagg.run.threads import Joinable

_OPEN: "weakref.WeakSet[Engine]" = weakref.WeakSet()


class Engine:
    """Real workers under the controller. Close it, or use it in a `with`; a closed one says so."""

    def __init__(
        self, config: Config, model: Model | None = None, progress: Callable[[str], None] | None = None,
        faults: FaultPlan | None = None,
    ):  # fmt: skip
        """`faults`: what is to go wrong on the way, for lessons and tests; CPU workers obey it."""
        check_devices(config)
        self._inbox: queue.SimpleQueue = queue.SimpleQueue()
        self.injection = Injection(faults, self._inbox.put) if faults is not None else None
        self._post = self.injection.post if self.injection else self._inbox.put
        self._progress = progress or (one_line if config.decode_device != "cpu" else lambda text: None)
        torch.set_num_threads(config.threads)
        share_the_interpreter()
        self.model = model or load(config, config.decode_device)
        self._settings = Settings(config, self.model)
        self.config = self._settings.first
        self.kernel = pick_kernel(
            self.config.attention, self.config.decode_device, self.model.shape, self.model.config.num_attention_heads,
            self.config.block_size, self.model.config,
        )  # fmt: skip
        shape = self.model.shape
        try:
            self.executor = Executor(
                self.config, self.model, self.kernel, self._post, (self._keep, self._record), self._progress,
                self.injection,
            )  # fmt: skip
        except EngineError as error:
            raise EngineError(f"{error}{held_in_words(engine.executor.caches for engine in list(_OPEN))}") from None
        ahead = 1 if self.kernel is None else 2  # a step on a GPU is launched before the last one's tokens are known
        self.controller = Controller(
            self.config, layers=shape.layers, token_bytes=shape.token_bytes, steps_in_flight=ahead,
            pads=self.kernel is None,
        )  # fmt: skip
        self.detectors = Watch(self.config, layers=shape.layers)
        self.controller.book.on_move = self.detectors.moved
        self.breach: Breach | None = None  # what a detector saw; the engine is broken then
        self._handles: dict[int, Handle] = {}
        self._numbers = itertools.count()
        self._serving: int | None = None  # the thread in `serve`
        self._submitting = threading.Lock()
        self._closing = threading.RLock()
        self._over = threading.Event()  # interrupted, closed or broken: nobody waits for an arrival any more
        self._served: dict[int, Handle] = {}  # of the run that `serve` is in
        self._closed = self._gone = False  # takes nothing more; has ended
        self._broken: str | None = None
        self._thread = Joinable(target=self._run, name="disagg engine")
        try:  # no memory for a replica, no thread, an interrupt: what was started stops
            self.executor.connect()
            transfers = self.executor.transfers
            machine = machine_in_words() + sms_in_words(self.executor.parts) + transfers.clock_in_words()
            self.recorder = Recorder(self.controller.book, transfers.traffic, machine)
            self.executor.start()
            self._thread.start()
            _OPEN.add(self)
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> "Engine":
        if self._closed:
            self._check_open()
        return self

    def __exit__(self, *exc):
        self.close()

    # ---- what users call ---------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> Handle:
        """Starts one request now; RequestError where it can never be served."""
        self._check_open()
        return self._submit(request, self._prepare(request), now_ns())

    def serve(self, requests: Iterable[Request], record: bool = True) -> Run:
        """Serves requests at their arrival times and waits for all. An interrupt ends what is open, and returns.
        So does a `close` by another thread. With `record=False` the run has no timeline, only results and counts.

        RequestError before anything starts where one of them can't be served; EngineError if the engine breaks.
        """
        self._check_open()
        requests = listed(requests)
        prepared = [self._prepare(request) for request in requests]
        here = threading.get_ident()
        with self._submitting:
            if self._serving not in (None, here):  # this thread's own is what an interrupt left behind
                raise EngineError("this engine is serving already; wait for that run, or build a second engine")
            self._serving = here
        try:
            return self._serve(requests, prepared, record)
        finally:
            self._served = {}
            self.recorder.between_runs()
            self._serving = None

    def interrupt(self):
        """Ends the run that another thread serves, as an interrupt there would: `serve` returns with what there is."""
        self._over.set()
        for handle in list(self._served.values()):
            handle.cancel()

    def open_handles(self) -> list[Handle]:
        """Of the requests that have not ended."""
        return list(self._handles.values())

    def why(self, request: int | Handle) -> str:
        """What an open request waits for, who holds that, and for how long; in words, as of the last event."""
        number = request.so_far.request if isinstance(request, Handle) else request
        return self._ask(lambda: why(self.controller.book, number, now_ns()))

    def _ask(self, question: Callable[[], str]) -> str:
        """The engine's thread answers between two events: the book has no other reader."""
        answer: Future = Future()
        self._inbox.put((question, answer))
        while self._thread.is_alive():
            with contextlib.suppress(TimeoutError):
                return answer.result(0.1)
        return question()  # nothing changes any more

    def retune(self, **changes):
        """Changes settings while it runs; what can't change is refused. Shrinking a pool drains it first."""
        self._check_open()
        config = self._settings.changed(self.config, changes)
        self.controller.check_live(config)
        self.executor.transfers.check(config)
        self._settings.check_growth(config, captured=self.kernel is not None)
        self.config = config
        self._inbox.put(ev.Retune(config))

    def close(self):
        """Ends what is open as cancelled, and all threads within a step. Closing twice does nothing.

        An interrupt is raised when all that has ended; after a second one, closing again goes on.
        """
        try:
            self._close()
        except KeyboardInterrupt:
            self._close()
            raise

    def _close(self):
        """May be cut short anywhere, and called again."""
        with self._submitting:
            self._closed = True
        self._over.set()
        with self._closing:
            if self._gone:
                return
            handles = list(self._handles.values())
            for handle in handles:
                handle.cancel()
            for handle in handles:
                handle.result()  # from here on the controller starts nothing more, and hears what still ends
            self._end()
            self._gone = True

    def _end(self):
        """Stops whatever was started."""
        self.executor.stop()
        self._inbox.put(None)
        self._thread.join()
        _OPEN.discard(self)
        self.executor.let_go()

    # ---- requests ----------------------------------------------------------------------------------------------------

    def _prepare(self, request: Request) -> Job:
        """The request as a job, or a RequestError where it can never be served."""
        job = job_of(request, self.model, self.config.seed)
        if refusal := self.controller.refusal(job):
            raise RequestError(refusal)
        return job

    def _submit(
        self, request: Request, job: Job, arrival_ns: int, served: dict[int, Handle] | None = None, index: int = 0
    ) -> Handle:
        """EngineError once the engine is closed or broken; before that, whoever closes or breaks it ends the handle.

        From the moment it is under way the handle is `served[index]`, whatever interrupts this call then.
        """
        served = {} if served is None else served
        number = next(self._numbers)
        job = Job(number, job.prompt, job.max_new_tokens, arrival_ns, job.eos_ids, job.sampling)
        timeline = self.recorder.timeline if self.recorder.on else None
        prompt = request.prompt if isinstance(request.prompt, str) else ""
        result = Result(number, len(job.prompt), arrival_ns, prompt=prompt, timeline=timeline)
        handle = Handle(result, self.model, lambda request: self._inbox.put(ev.Cancel(request)))
        try:
            with self._submitting:
                self._check_open()
                self._handles[number] = served[index] = handle
                self._inbox.put(ev.Submit(job))
        except KeyboardInterrupt:  # who would wait for a handle that is not under way, or know of one that is?
            self._handles.pop(number, None)
            served.pop(index, None)
            self._inbox.put(ev.Cancel(number))
            raise
        if self._broken:  # the loop is gone, or will not look at it
            self._fail_open(self._broken)
        return handle

    def _serve(self, requests: list[Request], prepared: list[Job], record: bool) -> Run:
        start, interrupted = now_ns(), False
        self.recorder.begin(start, record)
        self._over.clear()
        handles = self._served = {}
        try:
            for index in sorted(range(len(requests)), key=lambda i: requests[i].arrival_s):
                arrival = start + round(requests[index].arrival_s * 1e9)
                if self._over.wait(max(0, arrival - now_ns()) / 1e9) or self._closed or self._broken:
                    interrupted = True
                    break
                try:
                    self._submit(requests[index], prepared[index], arrival, handles, index)
                except EngineError:  # it broke, or was closed, since the line above; what has ended is still a run
                    interrupted = True
                    break
            for handle in handles.values():
                if self._over.is_set():  # also one that was submitted while the others were cancelled
                    handle.cancel()
                handle.result()
        except KeyboardInterrupt:
            interrupted = True
            for handle in handles.values():
                handle.cancel()
            for handle in handles.values():
                handle.result()
        never = [Result(-1, len(job.prompt), start, finish_reason=Finish.CANCELLED.value) for job in prepared]
        results = [handles[i].result() if i in handles else never[i] for i in range(len(requests))]
        interrupted = interrupted or (self._over.is_set() and not self._closed)
        run = self.recorder.run(self.config, results, interrupted)
        if self._broken:
            error = EngineError(f"the engine is broken and must be rebuilt: {self._broken}")
            error.run = run
            raise error
        return run

    # ---- the engine's thread -----------------------------------------------------------------------------------------

    def _run(self):
        """Events in, commands out, until it is closed. A bug in the controller breaks the engine, in words."""
        ask_for_short_slices()
        try:
            while (event := self._next_event()) is not None:
                now = now_ns()
                self.recorder.hear(now, event)
                commands = self._decide(event, now)
                self.recorder.note(now)
                if self.controller.broken:
                    self._break(self.controller.broken)  # known before any request's end is told
                for command in commands:
                    self._obey(command)
                if self.injection is not None:
                    self.injection.after_event(self)
            self.detectors.drained(now_ns())
        except Breach as breach:  # before any of these commands was carried out
            self.breach = breach
            self._fail_open(breach.summary)
        except BaseException as error:
            self._fail_open(f"the controller failed: {type(error).__name__}: {error}")
            raise

    def _decide(self, event, now: int) -> list:
        """What the controller makes of an event, heard by the detectors on both sides."""
        watch = self.detectors
        watch.hear(now, event)
        commands = self.controller.handle(event, now)
        for command in commands:
            watch.obey(now, command)
        watch.settle()
        if isinstance(event, ev.Tick):
            watch.watchdog(now)
        return commands

    def _next_event(self):
        """The inbox's next event; a Tick where a deadline comes first."""
        while True:
            deadline = self.controller.book.next_deadline_ns
            try:
                event = self._inbox.get(timeout=None if deadline is None else max(0, deadline - now_ns()) / 1e9)
            except queue.Empty:
                return ev.Tick()
            if type(event) is not tuple:
                return event
            question, answer = event  # not an event: nothing changes, and nothing is logged
            try:
                answer.set_result(question())
            except Exception as error:  # the asker's, not the engine's
                answer.set_exception(error)

    def _obey(self, command):
        """The executor's part first, then what is for handles and the recorder."""
        self.executor.obey(command)
        match command:
            case cmd.Emit():
                for request, token in zip(command.requests, command.tokens, strict=True):
                    if handle := self._handles.get(request):
                        handle.push(token, command.at_ns)
            case cmd.Ended():
                if handle := self._handles.pop(command.request, None):
                    handle.end(command)
            case cmd.Preempted():
                self.recorder.choices.append(command.choice)
            case cmd.Broken():
                self._fail_open(command.cause)  # also those whose Submit is still in the inbox

    def _break(self, cause: str):
        self._broken = self._broken or cause
        self._over.set()

    def _fail_open(self, cause: str):
        """Nobody waits for ever: every open handle ends as failed."""
        self._break(cause)
        for number in list(self._handles):
            handle = self._handles.pop(number, None)
            if handle is not None:
                handle.end(cmd.Ended(number, Finish.FAILED, cause, now_ns(), ()))

    # ---- what the executor tells -------------------------------------------------------------------------------------

    def _keep(self, request: int, logits: torch.Tensor):
        handle = self._handles.get(request)
        if handle is not None:
            handle.keep_logits(logits.to(self.model.device))  # of one request, on one device

    def _record(self, span):
        self.recorder.span(span)

    def _check_open(self):
        if self._closed:
            raise EngineError("this engine is closed; build a new one")
        if self._broken:
            raise EngineError(f"this engine is broken and must be rebuilt: {self._broken}")


def one_line(text: str):
    """Progress on one line of the terminal; an empty text clears it."""
    sys.stderr.write(f"\r\033[K{text}")
    sys.stderr.flush()


@atexit.register
def _close_all():
    """No worker is left inside torch while the interpreter goes down."""
    for engine in list(_OPEN):
        engine.close()
