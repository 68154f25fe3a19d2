"""Fits the cost model to this machine: a short designed run on a real engine, and least squares over relative errors,
since a pass takes a hundred times as long as a copy; a soft loss gives delayed works little weight.
Notebook: notebooks/06_twin_and_claims.ipynb.
"""

import dataclasses
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import psutil
import torch
from scipy.optimize import least_squares

from disagg.plan.errors import EngineError
from disagg.plan.link import PRESETS
from disagg.plan.request import Request
from disagg.run.engine import Engine
from disagg.show.plots.roofline import measure_ceilings
from disagg.trace.results import Run
from disagg.twin import samples
from disagg.twin.calibration import Calibration
from disagg.twin.hardware import DEVICES, LIKE_H200, Costs, Device, Fit, Hardware
from disagg.twin.work import Sizes

LIMIT_S, FITTING_S, CROWDS = 60.0, 5.0, 3
EARLIEST = 0.01  # share of a layer's time before its hand-off: its keys and values take some
SOFT = 0.1  # larger relative errors count less than their square
START = Fit(
    0.5, 0.3, 0.7, 0.5, 0.8, pass_s=1e-3, row_s=1e-4, batch_s=1e-4, copy_s=1e-4, beside_pass=1.1, beside_step=1.1
)
#: The numbers that each kind of work fits, in the order of the fit. Steps of one model can't separate their fixed cost
#: from the reading of weights: all of it counts as reading.
FITTED_BY = {
    "steps": ("reading", "kv", "batch_s", "row_s", "beside_step"),
    "passes": ("products", "attention", "pass_s", "beside_pass"),
    "copies": ("copying", "copy_s"),
}
#: (prompt tokens, new tokens) of requests served together on a CPU; a GPU gets longer requests, and more.
ALONE = [[(32, 16)], *([(tokens, 1)] for tokens in (16, 64, 128, 256, 400)), [(32, 12)] * 8, [(256, 12)] * 4]
MIXED = [(24, 40), (200, 8), (60, 24), (330, 12), (16, 48), (120, 16), (280, 10), (40, 30), (90, 20), (380, 6)]

Work = tuple[Callable[[Costs], float], float]  # seconds by the model, and measured seconds


def calibrate(engine: Engine, limit_s: float = LIMIT_S) -> Calibration:
    """Calibrates the engine's devices in about `limit_s` seconds; nothing else may run meanwhile. Each kind of work
    runs at least once, and crowds until the limit. EngineError if the run showed too little."""
    start, took = time.perf_counter(), 0.0
    engine.serve(_requests(engine, MIXED[:1]))  # a warm-up
    runs = [engine.serve(_requests(engine, asked)) for asked in ALONE]
    for _ in range(CROWDS):
        begun = time.perf_counter()
        if begun - start + took > limit_s - FITTING_S:
            break
        runs.append(engine.serve(_requests(engine, MIXED)))
        took = time.perf_counter() - begun
    sizes, pads = Sizes.of(engine.model), engine.attention_path.pads
    device, name = fitted(_bare(engine), sizes, runs, pads), f"{engine.model.name}, {engine.config.dtype}"
    return calibration(device, sizes, runs, name, pads, time.perf_counter() - start)


def fitted(device: Device, sizes: Sizes, runs: Sequence[Run], pads: bool) -> Device:
    """The device with the best fit to the runs. EngineError if they show too little."""
    found = works(runs, pads)
    device = dataclasses.replace(device, fit=dataclasses.replace(START, source="measured"))
    for kind, names in FITTED_BY.items():
        if kind == "copies" and not found[kind]:
            continue  # one device or a dialled link: nothing to fit
        if len(found[kind]) < len(names):
            raise EngineError(f"a calibration needs {len(names)} {kind} at least, and {len(found[kind])} were seen")
        device = _fit(device, sizes, names, found[kind])
    idle = [seconds for run in runs for seconds in samples.turns(run)]
    turn_s = statistics.median(idle) if idle else 0.0
    fit = dataclasses.replace(device.fit, turn_s=turn_s, handed_off=_handed_off(Costs(sizes, device), runs))
    return dataclasses.replace(device, fit=fit)


def _handed_off(costs: Costs, runs: Sequence[Run]) -> float:
    """The point of a layer's hand-off in its share of a pass, by the first and the last layer. The shares are equal:
    the twin has no time for a pass's start or end alone."""
    found = []
    for work in chain.from_iterable(map(samples.passes, runs)):
        head_s = costs.head_s(work.ending) * _slower(costs.device.fit.beside_pass, work.beside)
        share_s = (work.seconds - head_s) / costs.sizes.layers
        found.append((work.lead_s / share_s + 1 - (work.tail_s - head_s) / share_s) / 2)
    return min(1.0, max(EARLIEST, statistics.median(found)))


def calibration(
    device: Device, sizes: Sizes, runs: Sequence[Run], model: str, pads: bool, seconds: float
) -> Calibration:
    costs = Costs(sizes, device)
    found = {kind: pairs for kind, pairs in works(runs, pads).items() if pairs}
    errors = {kind: [abs(model_s(costs) / took - 1) for model_s, took in pairs] for kind, pairs in found.items()}
    residuals = {kind: statistics.median(each) for kind, each in errors.items()}
    seen = {kind: len(each) for kind, each in errors.items()}
    return Calibration(runs[0].machine, model, Hardware(device, device, 2), residuals, seen, seconds)


def works(runs: Iterable[Run], pads: bool) -> dict[str, list[Work]]:
    found: dict[str, list[Work]] = {kind: [] for kind in FITTED_BY}
    for run in runs:
        found["steps"] += [(partial(_step_s, step), step.seconds) for step in samples.steps(run, pads)]
        found["passes"] += [(partial(_pass_s, work), work.seconds) for work in samples.passes(run)]
        if not any(link.dialled for link in run.config.links):
            found["copies"] += [(partial(_copy_s, copy), copy.seconds) for copy in samples.copies(run)]
    return {kind: [(model_s, took) for model_s, took in pairs if took > 0] for kind, pairs in found.items()}


def _step_s(step: samples.StepSample, costs: Costs) -> float:
    return costs.step_s(step.rows, step.tokens) * _slower(costs.device.fit.beside_step, step.beside)


def _pass_s(work: samples.PassSample, costs: Costs) -> float:
    alone = costs.pass_s(work.chunks) + costs.head_s(work.ending)
    return alone * _slower(costs.device.fit.beside_pass, work.beside)


def _copy_s(copy: samples.CopySample, costs: Costs) -> float:
    device, direct = costs.device, copy.lane.startswith("direct")
    rate = PRESETS[device.link if direct else device.host_link]
    return device.fit.copy_s + copy.nbytes / (rate * device.fit.copying)


def _slower(beside: float, share: float) -> float:
    """The factor on a work of which this share ran beside another."""
    return 1 + (beside - 1) * share


def _fit(device: Device, sizes: Sizes, names: Sequence[str], found: Sequence[Work]) -> Device:
    """Fits some of the numbers by least squares over their logarithms."""

    def with_(logs: np.ndarray) -> Device:
        values: dict[str, Any] = dict(zip(names, map(float, np.exp(logs)), strict=True))
        return dataclasses.replace(device, fit=dataclasses.replace(device.fit, **values))

    def errors(logs: np.ndarray) -> list[float]:
        costs = Costs(sizes, with_(logs))
        return [np.log(model_s(costs) / took) for model_s, took in found]

    low, high = zip(*(_bounds(name) for name in names), strict=True)
    start = np.clip(np.log([getattr(device.fit, name) for name in names]), np.log(low) + 1e-6, np.log(high) - 1e-6)
    best = least_squares(errors, start, bounds=(np.log(low), np.log(high)), loss="soft_l1", f_scale=SOFT)
    return with_(best.x)


def _bounds(name: str) -> tuple[float, float]:
    if name.startswith("beside"):
        return 1.0, 3.0
    return (1e-7, 1.0) if name.endswith("_s") else (1e-3, 1.2)  # a measured ceiling may be exceeded


def _bare(engine: Engine) -> Device:
    if engine.config.decode_device == "cpu":
        ceilings = measure_ceilings(engine.config.threads)
        memory = psutil.virtual_memory().total // 2
        return Device("CPU", ceilings.flops_per_s, ceilings.bytes_per_s, memory, "memory", "memory", "measured", START)
    name = torch.cuda.get_device_name(engine.config.decode_device)
    known = [device for key, device in DEVICES.items() if key in name.lower().replace(" ", "")]
    if not known:
        raise EngineError(f"{name} has no entry in plan/hardware; known: {', '.join(d.name for d in DEVICES.values())}")
    return dataclasses.replace(known[-1], fit=LIKE_H200)


def _requests(engine: Engine, asked: Sequence[tuple[int, int]]) -> list[Request]:
    """Requests that arrive at once, within the engine's memories."""
    config, dice = engine.config, random.Random(len(asked))
    longer, more = (1, 1) if config.decode_device == "cpu" else (8, 4)
    assert config.prefill_blocks is not None and config.decode_blocks is not None, "an engine fills in what was open"
    room = min(config.prefill_blocks, config.decode_blocks) * config.block_size // 2
    words = range(min(1000, engine.model.vocab_size))
    lengths = [*asked] * (more if len(asked) > 1 else 1)
    return [
        Request(dice.choices(words, k=min(tokens * longer, room - new)), new, ignore_eos=True)
        for tokens, new in lengths
    ]
