"""The engine's controller and transfer scheduler under a virtual clock: `simulate`, and the engines it runs."""

import gc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from disagg.plan.blocks import blocks_for
from disagg.plan.config import DEFAULT_TOKENS, Config
from disagg.plan.errors import ConfigError, EngineError
from disagg.plan.intake import job_of
from disagg.plan.request import Request, listed
from disagg.trace.results import Run
from disagg.twin.hardware import Device, Hardware, Predicted
from disagg.twin.model_shapes import limits_of
from disagg.twin.simulated_engine import SimulatedEngine, Speeds, WorkTimes

Simulation = TypeVar("Simulation", bound=SimulatedEngine)


def simulate(
    config: Config,
    requests: Iterable[Request],
    speeds: WorkTimes | None = None,
    hardware: str | Device | Hardware | None = None,
    record: bool = True,
) -> Run:
    """Serves requests given as token ids under a virtual clock; the same Run as `Engine.serve`.

    With `hardware` ("2xL4", "H100+L4", a twin.hardware.Hardware) times are predicted from the model's sizes; else
    `speeds` give them. With `record=False` the run has results and counts but no timeline. ConfigError for unknown
    hardware, and where the model does not fit; EngineError, with the run so far, where the policy breaks it.
    """
    if hardware is None:
        simulation = simulation_of(SimulatedEngine, config, listed(requests), speeds or Speeds(), record=record)
    elif speeds is None:
        simulation = simulation_on(hardware, config, requests, record)
    else:
        raise ConfigError("simulate takes speeds or hardware, not both: hardware predicts the speeds")
    with uncollected():
        simulation.run()
    run = simulation.so_far()
    simulation.close()
    if simulation.controller.broken_by_policy:
        broken = EngineError(f"the simulation is broken: {simulation.controller.broken}")
        broken.run = run
        raise broken
    return run


def simulation_on(
    hardware: str | Device | Hardware, config: Config, requests: Iterable[Request], record: bool = True
) -> SimulatedEngine:
    """A simulation with predicted times, with these requests scheduled. ConfigError as `simulate`."""
    hardware = Hardware.parse(hardware)
    times = Predicted.of(config, hardware)
    simulation = simulation_of(SimulatedEngine, times.sized(config), listed(requests), times, record=record)
    simulation.recorder.machine = f"virtual clock, {hardware.words}"
    if not times.pads and (lanes := simulation.transfers.lanes):  # as engines on GPUs do
        name, lane = next(iter(lanes.items()))
        simulation.transfers.measured(simulation.config, times.cost(name).dialled(lane.clock.link).least_bytes)
    return simulation


def simulation_of(
    kind: type[Simulation], config: Config, requests: Sequence[Request], speeds: WorkTimes, **how: Any
) -> Simulation:
    """A simulation with these requests, given as token ids, scheduled. RequestError if an engine would refuse one,
    ConfigError if the model's shape is unknown."""
    size = config.block_size or 1
    open_sizes = {name: blocks_for(n, size) for name, n in DEFAULT_TOKENS.items() if getattr(config, name) is None}
    simulation = kind(config.replace(**open_sizes), speeds, **how)
    limits = limits_of(config.model)
    for index, request in enumerate(requests):
        job = job_of(request, limits, seed=config.seed)
        simulation.submit(replace(job, id=index, arrival_ns=round(request.arrival_s * 1e9)))
    return simulation


@contextmanager
def uncollected() -> Iterator[None]:
    """Turns the cycle collector off: it takes a quarter of a run's time, and a simulation makes no cycles."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
