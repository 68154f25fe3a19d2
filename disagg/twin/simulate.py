"""The same controller and the same traffic under a virtual clock: `simulate`, and the worlds it runs."""

import gc
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import replace

from disagg.plan.blocks import blocks_for
from disagg.plan.config import DEFAULT_TOKENS, Config
from disagg.plan.errors import ConfigError
from disagg.plan.intake import job_of
from disagg.plan.request import Request, listed
from disagg.trace.results import Run
from disagg.twin.hardware import Hardware, Predicted
from disagg.twin.model_shapes import limits_of
from disagg.twin.simulated_engine import SimulatedEngine, Speeds


def simulate(
    config: Config, requests: Iterable[Request], speeds: Speeds | None = None, hardware=None, record: bool = True
) -> Run:
    """Serves requests given as token ids under a virtual clock; the same Run as `Engine.serve`.

    `hardware` names what it runs on ("2xL4", "H100+L4", a plan.hardware.Hardware): times are then predicted from the
    model's sizes. Without it the speeds count, which are round numbers. With `record=False` the run has no timeline,
    only results and counts: a day of requests then fits into memory. ConfigError for unknown hardware, and where the
    model does not fit.
    """
    if hardware is None:
        world = world_of(config, listed(requests), speeds or Speeds(), record=record)
    elif speeds is None:
        world = world_on(hardware, config, requests, record)
    else:
        raise ConfigError("simulate takes speeds or hardware, not both: hardware predicts the speeds")
    with uncollected():
        world.run()
    run = world.so_far()
    world.close()
    return run


def world_on(hardware, config: Config, requests: Iterable[Request], record: bool = True) -> SimulatedEngine:
    """A world of predicted times in which these requests will arrive. ConfigError as `simulate`."""
    hardware = Hardware.parse(hardware)
    speeds = Predicted.of(config, hardware)
    world = world_of(speeds.sized(config), listed(requests), speeds, record=record)
    world.recorder.machine = f"virtual clock, {hardware.words}"
    if not speeds.pads and (lanes := world.traffic.lanes):  # as engines on GPUs do
        name, lane = next(iter(lanes.items()))
        world.traffic.measured(world.config, speeds.cost(name).dialled(lane.clock.link).least_bytes)
    return world


def world_of(
    config: Config, requests: Sequence[Request], speeds, kind: type[SimulatedEngine] = SimulatedEngine, **how
) -> SimulatedEngine:
    """A world in which these requests, given as token ids, will arrive. RequestError where an engine would refuse one,
    ConfigError where the model's shape is unknown."""
    open_sizes = {
        name: blocks_for(tokens, config.block_size)
        for name, tokens in DEFAULT_TOKENS.items()
        if getattr(config, name) is None
    }
    world = kind(config.replace(**open_sizes), speeds, **how)
    limits = limits_of(config.model)
    for index, request in enumerate(requests):
        job = job_of(request, limits, seed=config.seed)
        world.submit(replace(job, id=index, arrival_ns=round(request.arrival_s * 1e9)))
    return world


@contextmanager
def uncollected():
    """Without the collector of cycles, which would look again and again at all that a run keeps: a quarter of its time.
    A world makes none while it runs."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
