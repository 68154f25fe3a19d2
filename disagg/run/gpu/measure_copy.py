"""What a copy on a GPU's route costs, measured once: a small one and a large one, before any request uses a block.

By the host's clock, from the call that launches the copy until the host has seen its end: the host's part of each copy
is more than the link's where layers are small.
"""

from disagg.plan.link import RouteCost, cost_of
from disagg.run.clock import now_ns
from disagg.run.gpu.stream_copy import Route, StreamCopier

TRIES = 5


def measure(copier: StreamCopier, small: Route, large: Route, block_bytes: int) -> RouteCost:
    """Copies both routes a few times, from blocks that no request uses yet; the shortest times count."""
    found = []
    with copier.current():
        for route in (small, large):
            seconds = []
            for _ in range(TRIES):
                began = now_ns()
                copier.launch(None, route, None, None).seen.synchronize()
                seconds.append((now_ns() - began) / 1e9)
            found.append((len(route.layers) * len(route.blocks) * block_bytes, min(seconds[1:])))
    return cost_of(*found)
