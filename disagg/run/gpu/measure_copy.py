"""What a copy on a GPU's route costs, measured once: a small one and a large one, before anybody uses a block.

By the host's clock, from the call that launches it to the host that has seen its end: the host pays for each copy, and
where layers are small that is more than the wire needs.
"""

from disagg.plan.link import RouteCost, cost_of
from disagg.run.clock import now_ns
from disagg.run.gpu.stream_copy import Route, StreamCopier

TRIES = 5


def measure(copier: StreamCopier, small: Route, large: Route, block_bytes: int) -> RouteCost:
    """Copies both routes a few times, from blocks that nobody uses yet; the shortest times count."""
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
