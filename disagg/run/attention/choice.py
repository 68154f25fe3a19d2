"""Which attention runs: a kernel that reads the paged cache in place where there is one, else gathered slots.

A kernel is asked, not believed: before it is taken it must give what fp32 attention gives, on the model's own sizes.
"""

import torch

from disagg.plan.errors import ConfigError
from disagg.run.attention.gathered import Options, PrefillPlan, Workspace
from disagg.run.attention.paged import FlashKernel, PagedDecode, PagedPrefill, VarlenKernel
from disagg.run.batch import PrefillBatch, Segment
from disagg.run.device import on
from disagg.run.kv_cache import KVCache, KVShape

KINDS = ("sdpa", "plain")
KERNELS = (FlashKernel, VarlenKernel)
TOLERANCE = {torch.bfloat16: 0.03, torch.float16: 0.005}  # of outputs around 1; a wrong page or mask is off by 0.3


def choose(requested: str, device) -> str:
    """How gathered slots are attended for Config.attention: "sdpa" or "plain"."""
    if requested not in ("auto", "flash", *KINDS):
        raise ConfigError(f"attention is {requested!r}; it must be 'auto', 'flash' or one of {', '.join(KINDS)}")
    return requested if requested in KINDS else "sdpa"


def pick_kernel(requested: str, device, shape: KVShape, heads: int, block_size: int, model_config=None):
    """The paged kernel for a cache of this shape, None where slots are gathered; ConfigError for a refused flash."""
    if requested not in ("auto", "flash") or torch.device(device).type != "cuda":
        return None
    kernel, why = find_kernel(device, shape, heads, block_size, model_config)
    if kernel is None and requested == "flash":
        raise ConfigError(f"attention='flash' can't run on {device}: {why}. Use 'auto' or 'sdpa'.")
    return kernel


def find_kernel(device, shape: KVShape, heads: int, block_size: int, model_config=None) -> tuple[object | None, str]:
    """The first kernel that computes this shape rightly, or None and what kept each from it."""
    reasons = []
    for kind in KERNELS:
        reason = unfit(shape, model_config)
        if reason is None:
            try:
                kernel = kind()
                with on(torch.device(device)):
                    reason = trial(kernel, torch.device(device), shape, heads, block_size)
            except ImportError as error:
                reason = str(error).split("\n")[0]
            if reason is None:
                return kernel, ""
        reasons.append(f"{kind.name}: {reason}")
    return None, "; ".join(reasons)


def unfit(shape: KVShape, model_config) -> str | None:
    """What such kernels are not asked for here, from the model's config."""
    if shape.dtype not in TOLERANCE:
        return f"computes in 16 bits, not in {str(shape.dtype).removeprefix('torch.')}"
    windows = "sliding_attention" in (getattr(model_config, "layer_types", None) or ())
    windows |= (
        bool(getattr(model_config, "sliding_window", None)) and getattr(model_config, "layer_types", None) is None
    )
    if windows or getattr(model_config, "attn_logit_softcapping", None) or hasattr(model_config, "attention_sinks"):
        return "the model wants windows, softcap or sinks, which the gathered path has"
    return None


@torch.inference_mode()
def trial(kernel, device: torch.device, shape: KVShape, heads: int, block_size: int) -> str | None:
    """Runs a chunked prefill and a decode step on random numbers; what is wrong, or None."""
    one = KVShape(1, shape.kv_heads, shape.head_dim, shape.dtype)
    kept, blocks = block_size + 5, [2, 0]
    generator = torch.Generator(device).manual_seed(3)

    def draw(tokens: int, heads: int) -> torch.Tensor:
        return torch.randn(tokens, heads, shape.head_dim, dtype=shape.dtype, device=device, generator=generator)

    query = draw(kept + 1, heads).unflatten(1, (shape.kv_heads, -1))
    key, value = draw(kept + 1, shape.kv_heads), draw(kept + 1, shape.kv_heads)
    exact, cache = KVCache(one, 3, block_size, device), KVCache(one, 3, block_size, device)
    parts = [(0, block_size), (block_size, kept), (kept, kept + 1)]
    try:
        expected, found = [], []
        for start, stop in parts:
            here, batch = slice(start, stop), PrefillBatch(torch.zeros(stop - start), [Segment(start, stop, blocks)])
            plan = PrefillPlan(batch, exact, Workspace("plain"))
            expected.append(plan.run(0, query[here], key[here], value[here], Options()))
            if start < kept:
                plan = PagedPrefill(batch, cache, kernel)
            else:
                table, length = torch.tensor([blocks, [1, 1]]), torch.tensor([kept, 0])
                plan = PagedDecode(cache, kernel, table.int().to(device), length.int().to(device))
                here = [kept, kept]
            found.append(plan.run(0, query[here], key[here], value[here], Options())[: stop - start])
        off = float((torch.cat(found).float() - torch.cat(expected).float()).abs().max())
    except (RuntimeError, TypeError, ValueError) as error:
        return str(error).split("\n")[0]
    if not off <= TOLERANCE[shape.dtype]:
        return f"differs from plain attention by {off:.2g} on this device"
    return None


def describe(device="cpu") -> str:
    """One sentence for `doctor`: which attention runs on the device, and why not another."""
    if torch.device(device).type == "cpu":
        return "PyTorch SDPA over gathered slots runs on cpu, because flash-attn has kernels for GPUs only"
    kernel, why = find_kernel(device, KVShape(1, 8, 128, torch.bfloat16), 32, 256)
    if kernel is None:
        return f"PyTorch SDPA over gathered slots runs on {device} ({why})"
    return (
        f"{kernel.name} (chunks) and kernels of our own (whole prompts, decode) run on {device} in 16 bits, on the "
        "paged cache; PyTorch SDPA over gathered slots in fp32"
    )
