"""The trial of a kernel: it must give the results of fp32 attention on the model's own sizes."""

from dataclasses import replace
from typing import Any

import torch

from disagg.run.attention.gathered import PrefillPlan, Workspace
from disagg.run.attention.interface import Options, Plan
from disagg.run.attention.paged import FlashKernel, PagedDecode, PagedKernel, PagedPrefill
from disagg.run.gpu.device import on
from disagg.run.kv_cache import KVCache, KVShape
from disagg.run.model.batch import PrefillBatch, Segment

KERNELS: tuple[type[PagedKernel], ...] = (PagedKernel, FlashKernel)
TOLERANCE = {torch.bfloat16: 0.03, torch.float16: 0.005}  # of outputs around 1; a wrong block or mask is off by 0.3


def find_kernel(
    device: torch.device | str, shape: KVShape, heads: int, block_size: int, model_config: Any = None
) -> tuple[PagedKernel | None, str]:
    """The last of `KERNELS` that is correct for this shape, and the reason against the next; None where our own, which
    graphs need, is not."""
    found, why = None, unfit(shape, model_config)
    for kind in KERNELS if why is None else ():
        try:
            kernel = kind()
            with on(torch.device(device)):
                reason = try_kernel(kernel, torch.device(device), shape, heads, block_size)
        except ImportError as error:
            reason = str(error).split("\n")[0]
        if reason is not None:
            return found, f"{kind.name}: {reason}"
        found = kernel
    return found, why or ""


def unfit(shape: KVShape, model_config: Any) -> str | None:
    """The reason against all kernels for this dtype or model config, or None."""
    if shape.dtype not in TOLERANCE:
        return f"kernels compute in 16 bits, not in {str(shape.dtype).removeprefix('torch.')}"
    layer_types = getattr(model_config, "layer_types", None)
    windows = "sliding_attention" in (layer_types or ())
    windows |= bool(getattr(model_config, "sliding_window", None)) and layer_types is None
    if windows or getattr(model_config, "attn_logit_softcapping", None) or hasattr(model_config, "attention_sinks"):
        return "the model wants windows, softcap or sinks, which the gathered path has"
    return None


@torch.inference_mode()
def try_kernel(kernel: PagedKernel, device: torch.device, shape: KVShape, heads: int, block_size: int) -> str | None:
    """Runs a chunked prefill and a decode step on random numbers; returns what is wrong, or None."""
    one_layer = replace(shape, layers=1)
    kept, blocks = block_size + 5, [2, 0]
    generator = torch.Generator(device).manual_seed(3)

    def draw(tokens: int, heads: int) -> torch.Tensor:
        return torch.randn(tokens, heads, shape.head_dim, dtype=shape.dtype, device=device, generator=generator)

    query = draw(kept + 1, heads).unflatten(1, (shape.kv_heads, -1))
    key, value = draw(kept + 1, shape.kv_heads), draw(kept + 1, shape.kv_heads)
    exact, cache = (KVCache(one_layer, 3, block_size, device) for _ in range(2))
    expected, found = [], []
    try:
        for start, stop in [(0, block_size), (block_size, kept), (kept, kept + 1)]:
            rows: slice | list[int] = slice(start, stop)
            batch = PrefillBatch(torch.zeros(stop - start), [Segment(start, stop, blocks)])
            plan: Plan = PrefillPlan(batch, exact, Workspace("plain"))
            expected.append(plan.run(0, query[rows], key[rows], value[rows], Options()))
            if start < kept:
                plan = PagedPrefill(batch, cache, kernel)
            else:
                table, length = torch.tensor([blocks, [1, 1]]), torch.tensor([kept, 0])
                plan = PagedDecode(cache, kernel, table.int().to(device), length.int().to(device))
                rows = [kept, kept]  # the second row is padding
            found.append(plan.run(0, query[rows], key[rows], value[rows], Options())[: stop - start])
        off = float((torch.cat(found).float() - torch.cat(expected).float()).abs().max())
    except (RuntimeError, TypeError, ValueError) as error:
        return str(error).split("\n")[0]
    if not off <= TOLERANCE[shape.dtype]:
        return f"differs from plain attention by {off:.2g} on this device"
    return None
