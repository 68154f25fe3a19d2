"""Which attention runs: on a GPU a kernel that reads the paged cache in place, if its trial shows it right; else
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
    """How an engine's workers reach K/V in their caches."""

    GATHERED = "gathered"  # slots are copied out, rows padded; runs on every device and in every dtype
    PAGED = "paged"  # a kernel reads the cache in place, on a GPU in 16 bits; steps may run as CUDA graphs

    @classmethod
    def of(cls, kernel: "PagedKernel | None") -> "AttentionPath":
        return cls.GATHERED if kernel is None else cls.PAGED

    @property
    def pads(self) -> bool:
        """Are the rows of a decode step padded to the longest of their group?"""
        return self is AttentionPath.GATHERED

    @property
    def steps_in_flight(self) -> int:
        """Decode steps that may be launched at once: a paged one starts before the previous one's tokens are known."""
        return 2 if self is AttentionPath.PAGED else 1


def choose(requested: str, device: torch.device | str) -> str:
    """How gathered slots are attended for Config.attention: "sdpa" or "plain"."""
    if requested not in ("auto", "flash", *KINDS):
        raise ConfigError(f"attention is {requested!r}; it must be 'auto', 'flash' or one of {', '.join(KINDS)}")
    return requested if requested in KINDS else "sdpa"


def pick_kernel(
    requested: str, device: torch.device | str, shape: KVShape, heads: int, block_size: int, model_config: Any = None
) -> "PagedKernel | None":
    """The paged kernel for a cache of this shape, None where slots are gathered; ConfigError for a refused flash."""
    if requested not in ("auto", "flash") or torch.device(device).type != "cuda":
        return None
    from disagg.run.attention.kernel_trial import find_kernel

    kernel, why = find_kernel(device, shape, heads, block_size, model_config)
    if kernel is None and requested == "flash":
        raise ConfigError(f"attention='flash' can't run on {device}: {why}. Use 'auto' or 'sdpa'.")
    return kernel
