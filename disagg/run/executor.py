"""What carries out the controller's commands: memories, workers, lanes, and the parts of a GPU that is split by SMs.

Built in steps, so that what was started can be stopped wherever the building ends.
"""

from typing import TYPE_CHECKING, Any

import torch

from disagg.monitor.seams import Seams
from disagg.plan import commands as cmd
from disagg.plan.commands import Worker
from disagg.plan.config import Config
from disagg.plan.events import Probed
from disagg.run.attention.choice import AttentionPath, in_words, pick_kernel
from disagg.run.decode_worker import DecodeStage
from disagg.run.gpu.device import finish
from disagg.run.kv_cache import KVCache
from disagg.run.machine.devices import make_caches
from disagg.run.model.model import Model
from disagg.run.model.shared import model_on
from disagg.run.prefill_worker import PrefillStage
from disagg.run.reports import Reports
from disagg.run.transfers import Transfers
from disagg.run.worker import WorkerThread

if TYPE_CHECKING:
    from disagg.run.gpu.decode_graph import GraphDecodeStage
    from disagg.run.gpu.sm_split import SMPartition


class Executor:
    """Of one engine. It decides nothing."""

    def __init__(self, config: Config, model: Model, reports: Reports, seams: Seams) -> None:
        """The memories; EngineError where there is no room."""
        self.config, self.model, self.seams, self._reports = config, model, seams, reports
        files: Any = model.config
        wanted, device, heads = config.attention, config.decode_device, files.num_attention_heads
        self.kernel = pick_kernel(wanted, device, model.shape, heads, config.block_size, files)
        self.attention_path = AttentionPath.of(self.kernel)
        self.paged = self.attention_path is AttentionPath.PAGED
        self.caches = make_caches(config, model.shape, self.paged, seams)
        self.workers: dict[Worker, WorkerThread] = {}
        self._transfers: Transfers | None = None
        self.parts: dict[str, SMPartition] = {}

    @property
    def transfers(self) -> Transfers:
        """From `connect` on."""
        assert self._transfers is not None, "not connected yet"
        return self._transfers

    def connect(self) -> None:
        """The parts of a split GPU, and the lanes: nothing runs yet."""
        if self.config.sm_split:
            from disagg.run.gpu.sm_split import split_gpu

            self.parts = split_gpu(torch.device(self.config.decode_device), self.config.sm_split)
        post, record = self._reports.post, self._reports.record
        self._transfers = Transfers(self.config, self.caches, post, record, self.parts, self.seams)

    def start(self) -> None:
        """Lanes, then a thread a worker, each with its own module tree over the shared weights."""
        config = self.config
        self.transfers.start()
        for name, cache in self.caches.items():
            if name.role == "host":
                continue
            model = model_on(cache.device, self.model, bool(config.compile) and self.paged)
            prefill, decode = self._stages(name, self.seams.guard(model), cache)
            part = self.parts.get(name.role)
            self.workers[name] = WorkerThread(name, prefill, decode, self._reports, part, self.seams, config.probes)
            # One after the other: the second compiles little, and a capture must not overlap other work of its GPU.
            self.workers[name].start()
        if config.probes:
            passes = next(filter(None, (worker.passes for worker in self.workers.values())), ())
            steps = next(filter(None, (worker.steps for worker in self.workers.values())), ())
            self._reports.post(Probed(self.transfers.probe() if config.host_blocks else None, passes, steps))
        self._reports.progress("")

    def _stages(
        self, name: Worker, model: Model, cache: KVCache
    ) -> "tuple[PrefillStage | None, DecodeStage | GraphDecodeStage | None]":
        """What a worker does: prefill, decode, or both where they share a device."""
        config, kernel, reports, graphs = self.config, self.kernel, self._reports, None
        prefill: PrefillStage | None = None
        if kernel is not None:
            from disagg.run.gpu.captured_hand_off import CapturedHandOff
            from disagg.run.gpu.decode_graph import GraphDecodeStage
            from disagg.run.gpu.prefill_graph import PrefillGraphs
        if name.role == "prefill" or config.colocated:
            if kernel is not None and config.graphs:
                hand_off = CapturedHandOff.of(self.transfers, config, name)
                graphs = PrefillGraphs(model, cache, kernel, config.chunk_tokens, hand_off)
            prefill = PrefillStage(model, cache, kernel, self.transfers, reports, config.chunk_tokens, graphs)
        if name.role == "prefill":
            return prefill, None
        if kernel is None:
            return prefill, DecodeStage(model, cache, reports)
        how = bool(config.graphs), reports, bool(self.parts), bool(config.fused_decode)
        return prefill, GraphDecodeStage(model, cache, kernel, config.max_batch, *how)

    def attention_in_words(self) -> str:
        """The attention of all workers, as a caption adds it to the machine."""
        return f", attention: {in_words(self.config.attention, self.kernel)}"

    def split_in_words(self) -> str:
        """The parts of a split GPU, as a caption adds them to the machine."""
        parts = self.parts
        return f", {parts['decode'].sms} SMs for decode and {parts['prefill'].sms} for prefill" if parts else ""

    def obey(self, command: cmd.Command) -> None:
        """Hands on what is for a worker or the transfers; other commands are for handles and the recorder."""
        match command:
            case cmd.Prefill() | cmd.Decode():
                self.workers[command.worker].give(command)
            case cmd.Send() | cmd.Assign() | cmd.Abort() | cmd.Retuned():
                self.transfers.obey(command)
            case cmd.Ended():
                self.transfers.spilled.pop(command.request, None)

    def stop(self) -> None:
        """Workers after the command in hand, lanes after the copy in hand, for which no worker waits any more."""
        if self._transfers is not None:
            self._transfers.let_go()
        for worker in list(self.workers.values()):
            worker.close()
        if self._transfers is not None:
            self._transfers.close()

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
