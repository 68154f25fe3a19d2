"""c of the overlap law: how long this machine computes one layer of a prefill pass."""

import statistics

import torch

from disagg.plan.blocks import blocks_for
from disagg.run.gpu.device import settle
from disagg.run.gpu.device_clock import Moments
from disagg.run.kv_cache import KVCache
from disagg.run.model.batch import PrefillBatch, Segment
from disagg.run.model.model import Model


def compute_of_a_layer(model: Model, tokens: int = 128, passes: int = 3) -> float:
    """Median seconds between the hand-offs of two layers in a prefill pass of `tokens` tokens, nothing else running."""
    cache = KVCache(model.shape, blocks_for(tokens, 16), 16, model.device)
    ids = torch.arange(tokens) % int(model.vocab_size)
    batch = PrefillBatch(ids, [Segment(0, tokens, list(range(cache.num_blocks)))], [0])
    times = []
    for _ in range(passes):
        moments = Moments(cache.device)
        batch.on_layer = lambda layer, key, value, moments=moments: moments.mark()
        model.prefill(cache, batch)
        settle(cache.device)
        marks = moments.read()
        times.append((marks[-1] - marks[0]) / 1e9 / max(1, len(marks) - 1))
    return statistics.median(times[1:])
