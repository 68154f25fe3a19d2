"""What a worker does with its model and its memory: prefill, decode, or both where they share a device."""

from disagg.plan.commands import Worker
from disagg.plan.config import Config
from disagg.run.attention.choice import AttentionPath
from disagg.run.attention.paged import PagedKernel
from disagg.run.decode_worker import DecodeStage
from disagg.run.gpu.decode_graph import GraphDecodeStage
from disagg.run.kv_cache import KVCache
from disagg.run.model.model import Model
from disagg.run.prefill_worker import PrefillStage
from disagg.run.transfers import Transfers
from disagg.run.worker_reports import Tell


def stages_of(
    name: Worker, config: Config, model: Model, cache: KVCache, kernel: PagedKernel | None,
    transfers: Transfers, tell: Tell, split: bool,
) -> tuple[PrefillStage | None, DecodeStage | GraphDecodeStage | None]:  # fmt: skip
    """`kernel`: paged attention, None where slots are gathered; `split`: of one GPU's SMs between the two."""
    graphs, prefill, decode = config.graphs and AttentionPath.of(kernel) is AttentionPath.PAGED, None, None
    if name.role == "prefill" or config.colocated:
        prefill = PrefillStage(model, cache, kernel, transfers, tell, config.chunk_tokens, graphs)
    if name.role == "decode" and kernel is not None:
        decode = GraphDecodeStage(model, cache, kernel, config.max_batch, graphs, tell, split)
    elif name.role == "decode":
        decode = DecodeStage(model, cache, tell)
    return prefill, decode
