"""A worker: one thread, one device, one queue of commands. It decides nothing and shares no table."""

import queue
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from disagg.monitor.seams import Seams
from disagg.plan.commands import Decode, Prefill, Worker
from disagg.plan.errors import in_words
from disagg.plan.events import Prefilled, Stepped, WorkerDied
from disagg.run.decode_worker import DecodeStage
from disagg.run.gpu.device import own_stream
from disagg.run.gpu.thread_priority import yield_to_lanes
from disagg.run.model.model import keep_many_codes
from disagg.run.prefill_worker import PrefillStage
from disagg.run.reports import Reports, carry_out
from disagg.run.threads import Joinable, Latch

if TYPE_CHECKING:
    from disagg.run.gpu.decode_graph import GraphDecodeStage
    from disagg.run.gpu.sm_split import SMPartition


class WorkerThread:
    """Runs prefill passes, decode steps, or both where prefill and decode share the device."""

    def __init__(
        self,
        name: Worker,
        prefill: PrefillStage | None,
        decode: "DecodeStage | GraphDecodeStage | None",
        reports: Reports,
        part: "SMPartition | None",
        seams: Seams,
        probes: bool = False,
    ) -> None:
        self._probes = probes
        self.passes: tuple[tuple[int, int], ...] = ()  # (tokens, ns), timed at the start
        self.steps: tuple[tuple[int, int, int], ...] = ()  # (rows, tokens, ns), timed at the start
        self.name, self.prefill, self.decode = name, prefill, decode
        self._post, self._progress = reports.post, reports.progress
        self._part = part  # of the GPU's SMs; None: all
        self._seams = seams
        self._commands: queue.SimpleQueue[Prefill | Decode | None] = queue.SimpleQueue()
        self._ready = Latch()  # the stages are compiled, or `_error` is why they are not
        self._error: BaseException | None = None
        self._thread = Joinable(target=self._run, name=f"disagg {name}")

    def start(self) -> None:
        """Returns when the stages are compiled and captured, or raises what went wrong. It may be interrupted: `close`
        ends what was started."""
        self._thread.start()
        self._ready.wait()
        error, self._error = self._error, None  # an error keeps its frames, and they what was allocated
        if error is not None:
            raise error

    def give(self, command: Prefill | Decode) -> None:
        self._commands.put(command)

    def close(self) -> None:
        """Ends after the command in hand."""
        self._commands.put(None)
        self._thread.join()

    def let_go(self) -> None:
        """Drops model and memory, once its thread has ended: thread and worker refer to each other, and would keep
        them until the collector runs."""
        self.prefill = self.decode = None

    def _run(self) -> None:
        stages = [stage for stage in (self.prefill, self.decode) if stage is not None]
        yield_to_lanes()
        try:
            with own_stream(stages[0].cache.device, self._part):
                if not self._prepare(stages):
                    return
                while (command := self._commands.get()) is not None:
                    event = carry_out(command, partial(self._begin, command))
                    if event is not None:
                        self._post(event)
        except BaseException as error:
            self._post(WorkerDied(self.name, in_words(error)))
        finally:
            for stage in stages:
                stage.close()

    def _prepare(self, stages: "Sequence[PrefillStage | DecodeStage | GraphDecodeStage]") -> bool:
        """Compiles and captures what the stages want; False where that failed, which `start` raises."""
        try:
            for stage in stages:
                if stage.model.compiled:
                    keep_many_codes()
                stage.prepare(self._progress)
            if self._probes:
                self.passes = () if self.prefill is None else tuple(self.prefill.probe())
                self.steps = () if self.decode is None else tuple(self.decode.probe())
        except BaseException as error:
            self._error = error
            return False
        finally:
            self._ready.set()
        return True

    def _begin(self, command: Prefill | Decode) -> Prefilled | Stepped | None:
        self._seams.work(command)
        if isinstance(command, Prefill):
            assert self.prefill is not None
            if command.step is None:
                return self.prefill.step(command)
            assert self.decode is not None
            return self.decode.mixed(command.step, partial(self.prefill.step, command))
        assert self.decode is not None
        return self.decode.step(command)
