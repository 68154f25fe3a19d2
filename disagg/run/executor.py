"""What carries out the controller's commands: memories, workers, wires, and the parts of a GPU that is split by SMs.

Built in steps, so that what was started can be stopped wherever the building ends.
"""

from collections.abc import Callable

import torch

from disagg.monitor.fault_injection import Injection
from disagg.plan import commands as cmd
from disagg.plan.commands import Worker
from disagg.plan.config import Config
from disagg.run.attention.choice import AttentionPath
from disagg.run.attention.paged import PagedKernel
from disagg.run.device import finish
from disagg.run.gpu.sm_split import Part, split_gpu
from disagg.run.model.model import Model
from disagg.run.placement import make_caches, model_on
from disagg.run.stages import stages_of
from disagg.run.transfers import Transfers
from disagg.run.worker import WorkerThread
from disagg.run.worker_reports import Tell


class Executor:
    """Of one engine. It decides nothing."""

    def __init__(
        self, config: Config, model: Model, kernel: PagedKernel | None, post: Callable, tell: Tell,
        progress: Callable[[str], None], injection: Injection | None,
    ) -> None:  # fmt: skip
        """The memories; EngineError where there is no room. `post` takes events."""
        self.config, self.model, self.kernel, self.injection = config, model, kernel, injection
        self._post, self._tell, self._progress = post, tell, progress
        self.paged = AttentionPath.of(kernel) is AttentionPath.PAGED
        self.caches = make_caches(config, model.shape, self.paged, injection)
        self.workers: dict[Worker, WorkerThread] = {}
        self.transfers: Transfers | None = None
        self.parts: dict[str, Part] = {}

    def connect(self) -> None:
        """The parts of a split GPU, and the wires: nothing runs yet."""
        split = self.config.sm_split
        self.parts = split_gpu(torch.device(self.config.decode_device), split) if split else {}
        self.transfers = Transfers(self.config, self.caches, self._post, self._tell.record, self.parts, self.injection)

    def start(self) -> None:
        """Lanes, then a thread a worker, each with its own module tree over the shared weights."""
        self.transfers.start()
        for name, cache in self.caches.items():
            if name.role == "host":
                continue
            model = model_on(cache.device, self.model, self.config.compile and self.paged)
            if self.injection is not None:
                model = self.injection.guard(model)
            prefill, decode = stages_of(
                name, self.config, model, cache, self.kernel, self.transfers, self._tell, bool(self.parts)
            )
            part = self.parts.get(name.role)
            self.workers[name] = WorkerThread(name, prefill, decode, self._post, self._progress, part, self.injection)
            self.workers[name].start()
            # One after the other: the second compiles little, and a capture must not overlap other work of its GPU.
            if (error := self.workers[name].ready.get()) is not None:
                raise error
        self._progress("")

    def obey(self, command) -> None:
        """Hands on what is for a worker or a wire; anything else is for somebody else."""
        match command:
            case cmd.Prefill() | cmd.Decode():
                self.workers[command.worker].give(command)
            case cmd.Send():
                self.transfers.send(command)
            case cmd.Assign():
                self.transfers.assign(command)
            case cmd.Abort():
                self.transfers.abort(command)
            case cmd.Ended():
                self.transfers.forget(command.request)
            case cmd.Retuned():
                self.transfers.retune(command.config)

    def stop(self) -> None:
        """Workers after the command in hand, lanes after the copy in hand."""
        for worker in list(self.workers.values()):
            worker.close()
        if self.transfers is not None:
            self.transfers.close()

    def let_go(self) -> None:
        """Memory, once no device can touch it any more; then the parts of a split GPU: pinned memory that their streams
        copied is freed before they go."""
        for device in {cache.device for cache in list(self.caches.values())}:
            finish(device)
        for worker in self.workers.values():
            worker.let_go()
        self.caches.clear()  # gigabytes, which a notebook wants back before the next engine
        self.workers.clear()
        for part in list(self.parts.values()):
            part.close()
