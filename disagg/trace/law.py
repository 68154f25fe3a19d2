"""The law of layer-wise streaming: how much of a transfer hides behind prefill's compute.

L layers, c seconds of compute each; hop i takes x_i a layer, X = sum of x_i, x = max x_i (or X / ring_slots, if the
ring is what limits); the tail is prefill's time after the last layer's hand-off. E = max(0, X + (L-1) * max(0, x-c) -
tail) and H = 1 - E / (L * X), for one request, one chunk, a link of its own, and a prefill that never waits.
Notebook: notebooks/03_layer_streaming.ipynb.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Law:
    """Times in seconds a layer; `ring_slots` None for a route without a ring."""

    layers: int
    compute_s: float
    hops_s: tuple[float, ...]
    tail_s: float = 0.0
    layers_per_copy: int = 1
    ring_slots: int | None = None
    latency_s: float = 0.0  # of all hops

    @property
    def copies(self) -> int:
        return math.ceil(self.layers / self.layers_per_copy)

    @property
    def transfer_s(self) -> float:
        """All transfer time: every layer over every hop."""
        return self.layers * sum(self.hops_s)

    @property
    def exposed_s(self) -> float:
        """E: from the end of prefill to the last layer landed."""
        group = self.layers / self.copies
        compute, one_copy = self.compute_s * group, sum(self.hops_s) * group
        slowest = max(self.hops_s) * group
        if self.ring_slots:
            slowest = max(slowest, (one_copy + self.latency_s) / self.ring_slots)  # how long a copy keeps its slot
        queueing = (self.copies - 1) * max(0.0, slowest - compute)
        return max(0.0, one_copy + queueing + self.latency_s - self.tail_s)

    @property
    def hidden(self) -> float:
        """H: 1 - exposed / all transfer time; 1.0 where there is nothing to move."""
        return 1 - self.exposed_s / self.transfer_s if self.transfer_s else 1.0


def simplest_hidden(layers: int, compute_over_transfer: float) -> float:
    """The form to derive in class: one hop, no tail."""
    return (1 - 1 / layers) * min(1.0, compute_over_transfer)
