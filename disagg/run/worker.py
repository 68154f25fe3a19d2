"""A worker: one thread, one device, one queue of commands. It decides nothing and shares no table."""

import queue
import threading
from collections.abc import Callable

from disagg.plan.commands import Decode, Prefill, Worker
from disagg.plan.events import PassFailed, StepFailed, WorkerDied
from disagg.run.decode import DecodeStage
from disagg.run.device import own_stream
from disagg.run.prefill import PrefillStage
from disagg.run.punctual import yield_to_lanes


class WorkerThread:
    """Runs prefill passes, decode steps, or both where prefill and decode share the device."""

    def __init__(self, name: Worker, prefill: PrefillStage | None, decode: DecodeStage | None, post: Callable):
        self.name, self.prefill, self.decode, self._post = name, prefill, decode, post
        self._commands: queue.SimpleQueue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"disagg {name}", daemon=True)
        self._thread.start()

    def give(self, command):
        self._commands.put(command)

    def close(self):
        """Ends after the command in hand."""
        self._commands.put(None)
        self._thread.join()

    def _run(self):
        device = (self.prefill or self.decode).cache.device
        yield_to_lanes()
        try:
            with own_stream(device):
                while (command := self._commands.get()) is not None:
                    self._post(self._carry_out(command))
        except BaseException as error:
            self._post(WorkerDied(self.name, f"{type(error).__name__}: {error}"))

    def _carry_out(self, command: Prefill | Decode):
        """The event that answers the command; what the model raises fails its batch and nothing else."""
        try:
            return self.prefill.step(command) if isinstance(command, Prefill) else self.decode.step(command)
        except Exception as error:
            cause = f"{type(error).__name__}: {error}"
        if isinstance(command, Prefill):
            return PassFailed(command.worker, command.pass_id, cause)
        return StepFailed(command.worker, command.step, cause)
