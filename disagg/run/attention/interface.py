"""Attention over the paged KV cache, as transformers calls it in every layer, without a mask.

Compiled code sees one opaque operation for each phase and finds the call's plan by a number in a CPU tensor, so that no
call compiles again. The cache is no argument: a compiler could clone it and copy it back after the hand-offs.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface

from disagg.plan.errors import ModelError
from disagg.run.kv_cache import KVCache

NAME = "disagg_paged"


class Options(NamedTuple):
    """A layer's attention options: scale, window in tokens, and those that SDPA lacks."""

    scaling: float | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None


class Plan(ABC):
    """What all layers of one model call share: the batch, the cache and the attention."""

    phase: str  # "prefill" or "decode"
    cache: KVCache
    ticket: Tensor  # the call's number while it is announced

    @abstractmethod
    def run(self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: Options) -> Tensor:
        """Writes a layer's K/V into the cache, hands the layer off, and then attends.

        query [T, kv_heads, group, head_dim], key and value [T, kv_heads, head_dim] -> like query.
        """


_TICKETS = itertools.count()
_PLANS: dict[int, Plan] = {}  # plans of the model calls that compiled code runs


@contextmanager
def announced(plan: Plan) -> Iterator[Plan]:
    """Compiled code finds the plan in this context. A capture needs it; replays of a graph do not."""
    number = next(_TICKETS)
    plan.ticket, _PLANS[number] = torch.tensor(number), plan
    try:
        yield plan
    finally:
        del _PLANS[number]


def number_layers(module: torch.nn.Module) -> None:
    """Gives each attention its number as a CPU tensor: with a Python number each layer would compile separately."""
    for child in module.modules():
        if isinstance(getattr(child, "layer_idx", None), int):
            child.layer_number = torch.tensor(child.layer_idx)


def paged_attention(
    module: Any,
    query: Tensor,  # [1, heads, T, head_dim]
    key: Tensor,  # [1, kv_heads, T, head_dim]
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    plan: Plan,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer as transformers calls it: [1, T, heads, head_dim] and no weights."""
    check_call(module, key, value, attention_mask, plan.cache, unused)
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # [T, heads or kv_heads, head_dim]
    options = (scaling, sliding_window, softcap, s_aux)
    if torch.compiler.is_compiling():
        op = torch.ops.disagg.prefill_attention if plan.phase == "prefill" else torch.ops.disagg.decode_attention
        out = op(query, key, value, plan.ticket, module.layer_number, *options)
    else:
        out = run(plan, module.layer_idx, query, key, value, Options(*options))
    return out.unsqueeze(0), None


def run(plan: Plan, layer: int, query: Tensor, key: Tensor, value: Tensor, options: Options) -> Tensor:
    """One layer: query [T, heads, head_dim], the heads of a group side by side -> the same shape."""
    grouped = query.unflatten(1, (key.shape[1], -1))
    return plan.run(layer, grouped, key, value, options).flatten(1, 2)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ticket: Tensor,
    layer: Tensor,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    return run(_PLANS[int(ticket)], int(layer), query, key, value, Options(scaling, window, softcap, sinks))


for _phase in ("prefill", "decode"):
    _op = torch.library.custom_op(f"disagg::{_phase}_attention", _attend, mutates_args=())
    _op.register_fake(lambda query, *rest: query.new_empty(query.shape))


def check_call(
    module: Any, key: Tensor, value: Tensor, attention_mask: Tensor | None, cache: KVCache, unused: dict
) -> None:
    """ModelError for what this attention would compute wrongly."""
    if attention_mask is not None or unused.get("position_bias") is not None:
        raise ModelError(f"{type(module).__name__} brings its own mask or position bias; paged attention has neither")
    held = (cache.shape.kv_heads, cache.shape.head_dim)
    if (key.shape[1], key.shape[3]) != held or (value.shape[1], value.shape[3]) != held:
        raise ModelError(
            f"layer {module.layer_idx} makes keys of {key.shape[1]} x {key.shape[3]} and values of {value.shape[1]} x "
            f"{value.shape[3]} a token, where the cache holds {held[0]} x {held[1]} in every layer"
        )


AttentionInterface.register(NAME, paged_attention)
