"""The trial of fused layers: a step must give the module's logits and store its keys and values."""

from typing import Any

import torch

from disagg.run.attention.paged import PagedDecode, PagedKernel
from disagg.run.kv_cache import KVCache
from disagg.run.model.fused_decode import EVERY, FusedDecode, Own
from disagg.run.model.text import first_line

LIMIT = (
    0.1  # of the module's own size. Rounding to 16 bits gave up to 0.053 on random weights, one wrong norm or angle 0.3
)


def try_step(fused: FusedDecode, model: Any, kernel: PagedKernel, block_size: int, rows: int) -> str | None:
    """Runs a step of so many rows in all ways; returns what is wrong, or None."""
    try:
        found = [step_error(fused, model, kernel, block_size, rows, own) for own in (Own(), EVERY)]
    except Exception as error:  # a launch that this GPU refuses, or no room
        return first_line(error)
    off = max(found, key=lambda error: error if error <= LIMIT else float("inf"))  # NaN is the worst
    return None if off <= LIMIT else f"off by {off:.2g} of the module's own results"


@torch.inference_mode()
def step_error(fused: FusedDecode, model: Any, kernel: PagedKernel, block_size: int, rows: int, own: Own) -> float:
    """The difference in logits or in new keys and values, relative to their size, on random numbers.

    Few contexts repeat in the rows, so that a small cache is enough: rows that are alike store the same in one place.
    """
    contexts = [block_size + 3, 0, 7, block_size - 1, block_size][:rows]
    generator = torch.Generator().manual_seed(6)
    cache = KVCache(model.shape, 2 * len(contexts), block_size, model.device)
    cache.data.normal_(generator=torch.Generator(cache.device).manual_seed(7))
    each = torch.arange(rows) % len(contexts)
    table = torch.randperm(2 * len(contexts), generator=generator).view(-1, 2)[each]
    tokens = torch.randint(0, model.vocab_size, (len(contexts),), generator=generator)[each].to(model.device)
    lengths = torch.tensor(contexts)[each]
    slots = table[torch.arange(rows), lengths // block_size] * block_size + lengths % block_size
    table, lengths, slots = table.int().to(model.device), lengths.int().to(model.device), slots.to(model.device)
    found = []
    for fast in (False, True):
        if fast:
            logits = fused(cache, table, lengths, tokens, own)
        else:
            logits = model.call(PagedDecode(cache, kernel, table, lengths), tokens, lengths.long())
        found.append((logits.float(), cache.data.flatten(2, 3)[:, :, slots].float()))
    return float(torch.stack([(b - a).norm() / a.norm() for a, b in zip(*found, strict=True)]).max())  # NaN stays
