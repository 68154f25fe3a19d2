"""The choice of attention: on a GPU a kernel that reads the paged cache in place, if it passes its trial; else
gathered slots."""

from enum import Enum
from typing import TYPE_CHECKING, Any

import torch

from disagg.plan.errors import ConfigError
from disagg.run.kv_cache import KVShape

if TYPE_CHECKING:
    from disagg.run.attention.paged import PagedKernel

KINDS = ("sdpa", "plain")


class AttentionPath(Enum):
    """How workers read K/V from their caches."""

    GATHERED = "gathered"  # slots are copied out and rows padded; on every device, in every dtype
    PAGED = "paged"  # a kernel reads the cache in place, on a GPU in 16 bits; steps can be CUDA graphs

    @classmethod
    def of(cls, kernel: "PagedKernel | None") -> "AttentionPath":
        return cls.GATHERED if kernel is None else cls.PAGED

    @property
    def pads(self) -> bool:
        """Whether the rows of a decode step are padded to the longest of their group."""
        return self is AttentionPath.GATHERED

    @property
    def steps_in_flight(self) -> int:
        """Decode steps that may be in flight: a paged step starts before the previous step's tokens are known."""
        return 2 if self is AttentionPath.PAGED else 1


def choose(requested: str, device: torch.device | str) -> str:
    """The attention over gathered slots for Config.attention: "sdpa" or "plain"."""
    if requested not in ("auto", "flash", *KINDS):
        raise ConfigError(f"attention is {requested!r}; it must be 'auto', 'flash' or one of {', '.join(KINDS)}")
    return requested if requested in KINDS else "sdpa"


def pick_kernel(
    requested: str, device: torch.device | str, shape: KVShape, heads: int, block_size: int, model_config: Any = None
) -> "PagedKernel | None":
    """The paged kernel for a cache of this shape, or None for gathered slots; ConfigError if flash is refused."""
    if requested not in ("auto", "flash") or torch.device(device).type != "cuda":
        return None
    from disagg.run.attention.kernel_trial import find_kernel

    kernel, why = find_kernel(device, shape, heads, block_size, model_config)
    if requested == "flash" and (kernel is None or kernel.name != "flash-attn"):
        raise ConfigError(f"attention='flash' can't run on {device}: {why}. Use 'auto' or 'sdpa'.")
    return kernel


def in_words(requested: str, kernel: "PagedKernel | None") -> str:
    """The attention that runs, a library's kernel by name and version: for `doctor`, captions and recordings."""
    if kernel is None:
        return f"{'plain attention' if requested == 'plain' else 'PyTorch SDPA'} over gathered slots"
    if not kernel.version:
        return kernel.name
    return f"{kernel.name} {kernel.version} (chunks) and kernels of our own (graphs, whole prompts, decode)"


def describe(device: torch.device | str = "cpu") -> str:
    """One sentence for `doctor`: the attention on the device, and the reason against others."""
    if torch.device(device).type == "cpu":
        return f"{in_words('auto', None)} runs on cpu, because flash-attn has kernels for GPUs only"
    from disagg.run.attention.kernel_trial import find_kernel

    kernel, why = find_kernel(device, KVShape(1, 8, 128, torch.bfloat16), 32, 256)
    if kernel is None:
        return f"{in_words('auto', None)} runs on {device} ({why})"
    return (
        f"{in_words('auto', kernel)} run on {device} in 16 bits, on the paged cache; {in_words('auto', None)} in fp32"
    )
