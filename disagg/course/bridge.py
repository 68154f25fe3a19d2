"""What lets the real model compute with a student's pieces: it calls attention, and these plans ask the pieces."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from disagg.run.attention.gathered import attend, attend_segment
from disagg.run.attention.interface import Options, Plan
from disagg.run.model.model import Model


class OneRow(Plan):
    """Tokens of one request. `mine.update(layer, keys, values)` is asked in every layer for all keys and values."""

    phase = "prefill"

    def __init__(self, model: Model, mine: Any) -> None:
        self.cache: Any = SimpleNamespace(shape=model.shape)
        self.mine, self.held = mine, {}  # type: tuple[Any, dict[int, tuple[Tensor, Tensor]]]

    def run(self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: Options) -> Tensor:
        """key and value [new tokens, KV heads, size]; what update gives back [all tokens, KV heads, size]."""
        keys, values = self.held[layer] = self.mine.update(layer, key, value)
        mask = torch.ones(len(key), len(keys)).tril(len(keys) - len(key)).log()  # 0, and -inf for tokens to come
        return attend_segment(query, keys, values, mask, False, options)


class MyRows(Plan):
    """One token each of some requests. `slots` has, row by row, those of its tokens in `memory` [layers, 2, slots, KV
    heads, size], the new token's last; attention reads each group of rows up to its longest."""

    phase = "decode"

    def __init__(self, model: Model, memory: Tensor, slots: Sequence[list[int]], groups: Sequence[list[int]]) -> None:
        self.cache: Any = SimpleNamespace(shape=model.shape)
        self.memory, self.newest = memory, torch.tensor([row[-1] for row in slots])
        self.groups = [(torch.tensor(group), *padded([slots[row] for row in group])) for group in groups]

    def run(self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: Options) -> Tensor:
        """query [rows, KV heads, heads of a group, size], key and value [rows, KV heads, size]."""
        self.memory[layer, :, self.newest] = torch.stack([key, value])
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        for rows, slots, mask in self.groups:
            keys, values = self.memory[layer][:, slots].transpose(2, 3)  # [rows, KV heads, longest, size]
            out[rows] = attend(query[rows], keys, values, mask, False, options)
        return out


def padded(slots: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Slots [rows, longest], and a mask [rows, 1, 1, longest] that is -inf where a row has no token."""
    longest = max(map(len, slots))
    full = torch.tensor([row + row[:1] * (longest - len(row)) for row in slots])
    there = torch.tensor([[1.0] * len(row) + [0.0] * (longest - len(row)) for row in slots])
    return full, there.log()[:, None, None]


class Written(NamedTuple):
    """An answer, and how many tokens went through the model for it."""

    tokens: list[int]
    computed: int


def write(model: Model, prompt: list[int], new: int, cache: Callable[[], Any] | None = None) -> Written:
    """`new` greedy tokens after a prompt: with a cache of this kind, or without one, from the start each time."""
    mine, seen, tokens, computed = cache() if cache else None, 0, list(prompt), 0
    for _ in range(new):
        if mine is None:
            seen = 0
        ids, places = torch.tensor(tokens[seen:]), torch.arange(seen, len(tokens))
        plan = OneRow(model, mine or Forgets())
        tokens.append(best(model.logits(plan, ids, places, torch.tensor([len(ids) - 1])))[0])
        computed, seen = computed + len(ids), len(tokens) - 1
    return Written(tokens[len(prompt) :], computed)


class Forgets:
    """No cache: attention sees what this pass computes."""

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return keys, values


def best(logits: Tensor) -> list[int]:
    return logits.argmax(dim=-1).tolist()
