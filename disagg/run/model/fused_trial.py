"""The trial of fused layers: a step must give the module's logits and store its keys and values."""

from typing import Any

import torch

from disagg.run.attention.paged import PagedDecode, PagedKernel
from disagg.run.kv_cache import KVCache
from disagg.run.model.fused_decode import FusedDecode
from disagg.run.model.text import first_line

LIMIT = 0.05  # of the module's own size. Rounding to 16 bits gave up to 0.02, one wrong norm or angle 0.3 and more


@torch.inference_mode()
def try_step(fused: FusedDecode, model: Any, kernel: PagedKernel, block_size: int, rows: int) -> str | None:
    """Runs a step of so many rows on random tokens, keys and values in both ways; returns what is wrong, or None.

    Few contexts repeat in the rows, so that a small cache is enough: rows that are alike store the same in one place.
    """
    try:
        contexts = [0, 3, block_size - 1, block_size, block_size + 70 % block_size][: max(1, rows)]
        generator = torch.Generator().manual_seed(6)
        cache = KVCache(model.shape, 2 * len(contexts), block_size, model.device)
        cache.data.normal_()
        each = torch.arange(rows) % len(contexts)
        table = torch.randperm(2 * len(contexts), generator=generator).view(-1, 2)[each]
        tokens = torch.randint(0, model.vocab_size, (len(contexts),), generator=generator)[each].to(model.device)
        lengths, places = torch.tensor(contexts)[each], torch.arange(rows)
        slots = (table[places, lengths // block_size] * block_size + lengths % block_size).to(model.device)
        given = table.int().to(model.device), lengths.int().to(model.device)
        found = []
        for way in ("module", "fused"):
            if way == "module":
                logits = model.call(PagedDecode(cache, kernel, *given), tokens, given[1].long())
            else:
                logits = fused(cache, *given, tokens)
            stored = cache.data.flatten(2, 3)[:, :, slots]
            found.append((logits.float(), stored.float()))
        off = max(float((a - b).norm() / a.norm()) for a, b in zip(*found, strict=True))
    except Exception as error:  # a launch that this GPU refuses, or no room
        return first_line(error)
    return None if off <= LIMIT else f"off by {off:.2g} of the module's own results"
