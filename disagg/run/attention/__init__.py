"""Attention over the paged KV cache: one signature, and the kind that fits the device."""

from disagg.run.attention.choice import choose, describe, pick_kernel
from disagg.run.attention.gathered import DecodePlan, Options, PrefillPlan, Workspace
from disagg.run.attention.interface import NAME, announced, number_layers, paged_attention
from disagg.run.attention.paged import PagedDecode, PagedPrefill

__all__ = ["NAME", "DecodePlan", "Options", "PagedDecode", "PagedPrefill", "PrefillPlan", "Workspace", "announced",
           "choose", "describe", "number_layers", "paged_attention", "pick_kernel"]  # fmt: skip
