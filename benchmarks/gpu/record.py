"""Recordings of these GPUs for machines without one (`python -m benchmarks record-gpu`), measured as in the suites.

Each file is written as soon as it is measured; `disagg/show/recordings.py` has what stands in it.
"""

import statistics
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Say, known, one_pass, seconds, spans_of
from benchmarks.gpu import sharing, streaming
from benchmarks.gpu import steps as decode_steps
from benchmarks.gpu.fixture import Stand
from disagg.plan.errors import ConfigError, FileError
from disagg.plan.request import Request
from disagg.run.engine import Engine
from disagg.run.gpu.machine import gpu_in_words
from disagg.show import recordings
from disagg.show.recordings import HandOffTime, HandOffTimes, StepTime, StepTimes
from disagg.show.report import Failed, LeftOut
from disagg.trace.results import Run

#: What is switched on, rung by rung.
RUNGS = {
    "eager": dict(compile=False, graphs=False, join_projections=False, fused_decode=False),
    "compiled": dict(compile=True, graphs=False, join_projections=False, fused_decode=False),
    "graph": dict(compile=True, graphs=True, join_projections=False, fused_decode=False),
    "joined": dict(compile=True, graphs=True, join_projections=True, fused_decode=False),
    "fused": dict(compile=True, graphs=True, join_projections=True, fused_decode=True),
}
OF_A_GPU = ("graphs", "fused_decode")
HAND_OFF_RUNGS = {"launched": dict(compile=True, graphs=False), "captured": dict(compile=True, graphs=True)}
SMALL = "qwen3-0.6b"  # the shape whose hand-offs are recorded: a large model's passes hide any launches
SIZES = dict(steps=32, rounds=1, repeats=5)  # of a recording, within the sizes of the suite


def make_stand(shape: str, say: Say, sm_split: int = 32, pair: bool = False) -> Stand:
    """A stand whose work takes a minute or two a part."""
    stand = Stand(shape, say, sm_split, pair)
    stand.scale = replace(stand.scale, **{name: min(most, getattr(stand.scale, name)) for name, most in SIZES.items()})
    return stand


# ---- what is measured ------------------------------------------------------------------------------------------------


def step_times(stand: Stand) -> StepTimes:
    """Decode steps on each rung. A CPU has no graphs, and its steps stay as they are."""
    times, limits = [], stand.limits
    for rung, switches in RUNGS.items():
        stand.join(switches["join_projections"])
        stand.say(f"steps, {rung}")
        engine = decode_steps.engine_of(stand, **(switches | ({} if stand.on_gpu else dict.fromkeys(OF_A_GPU, False))))
        for batch in stand.scale.batches:
            found = decode_steps.measure(stand, engine, batch)
            seconds, gap_s = statistics.median(found.seconds), statistics.median(found.gaps_s)
            nbytes, context = round(statistics.median(found.nbytes)), float(statistics.median(found.contexts))
            times.append(StepTime(rung, batch, seconds, gap_s, nbytes, context, len(found.seconds)))
    return StepTimes(gpu_in_words(), stand.name, *limits, tuple(times))


def hand_off_times(stand: Stand) -> HandOffTimes:
    """Prefill passes without and with a staged hand-off, in turn, on each rung. A CPU launches both."""
    times, scale = [], stand.scale
    stand.join(True)
    for rung, switches in HAND_OFF_RUNGS.items():
        engine = streaming.staged_engine(stand, **(switches if stand.on_gpu else switches | {"graphs": False}))
        for tokens in scale.prompts:
            stand.say(f"prefill of {tokens} tokens, {rung}, without and with a hand-off")
            pairs = [streaming.pair_of_runs(stand, engine, tokens, index) for index in range(2 + scale.repeats)][2:]
            without, with_it = ([seconds(one_pass(run)) for run in runs] for runs in zip(*pairs, strict=True))
            overlaps = [on.overlap(0) for _, on in pairs]
            hops = [span.occupied_ns / span.count / 1e9 for _, on in pairs for span in spans_of(on, "copy")]
            hidden = [known(overlap.hidden) for overlap in overlaps]
            found = without, with_it, hidden, [overlap.exposed_s for overlap in overlaps], hops
            without_s, with_s, h, exposed_s, hop_s = map(statistics.median, found)
            times.append(HandOffTime(rung, tokens, without_s, with_s, h, exposed_s, hop_s, len(pairs)))
    return HandOffTimes(gpu_in_words(), stand.name, tuple(times))


def side_by_side(stand: Stand) -> Iterator[tuple[str, Run | LeftOut]]:
    """Readers beside long prompts, in each arrangement of the GPU."""
    stand.join(True)
    for name, run in sharing.side_by_side(stand):
        yield name, named(run) if isinstance(run, Run) else run


def splits(stand: Stand) -> Iterator[tuple[int, Run | LeftOut]]:
    """The same by how many SMs decode has for itself."""
    stand.join(True)
    for sms, run in sharing.by_split(stand):
        yield sms, named(run) if isinstance(run, Run) else run


def staged_runs(stand: Stand) -> Iterator[tuple[float, Run]]:
    """One prompt over the staged route at each dial: of the repeats the one with the median H."""
    stand.join(True)
    engine = streaming.staged_engine(stand)
    compute_s, _ = streaming.compute_alone(stand, engine)
    dials = {f"{dial:g}": dial for dial in stand.scale.dials}
    for _, dial, pairs in streaming.over_dials(stand, engine, dials, compute_s):
        runs = [on for _, on in pairs]
        yield dial, named(sorted(runs, key=lambda run: known(run.overlap(0).hidden))[len(runs) // 2])


def crowd_runs(stand: Stand) -> Iterator[tuple[str, Run]]:
    """Two GPUs, readers beside long prompts: split, and as two that do both."""
    requests = sharing.mixed(stand)
    lengths = [len(request.prompt) + request.max_new_tokens for request in requests]
    for name in recordings.PAIR["crowd"]:
        engine = stand.engine(name, lengths, prefill=sum(lengths), max_batch=len(requests))
        yield name, named(twice(engine, requests))


def route_runs(stand: Stand) -> Iterator[tuple[str, Run]]:
    """Two GPUs, one prompt in one pass, by each route."""
    tokens = stand.scale.streamed
    for route in recordings.PAIR["routes"]:
        engine = stand.engine(sharing.ROUTES[route], [tokens + 8] * 2, chunk_tokens=tokens, max_batch=8)
        yield route, named(twice(engine, stand.requests([tokens], 8)))


def paged_runs(stand: Stand) -> Iterator[tuple[str, Run]]:
    """Two GPUs, answers that grow beyond the blocks of decode: some are spilled to the host and fetched again."""
    block, count = stand.scale.block, stand.scale.mixed[0]
    prompt, new = 2 * block - block // 16, block + block // 2  # from two blocks to four
    engine = stand.engine("paged", [prompt + new] * count, prefill=count * prompt, max_batch=count,
                          host_blocks=4 * count)  # fmt: skip
    engine.retune(decode_blocks=2 * count + 2)
    yield "paged", named(twice(engine, stand.requests([prompt] * count, new)))


def twice(engine: Engine, requests: list[Request]) -> Run:
    """The second of two runs: the first one also pays for start-up."""
    engine.serve(requests)
    return engine.serve(requests)


def named(run: Run) -> Run:
    """With what its times depend on, beside the machine."""
    run.machine = f"{gpu_in_words()}; {run.machine}"
    return run


# ---- what is written -------------------------------------------------------------------------------------------------


def _write_steps(stand: Stand, folder: Path) -> Iterator[Path | LeftOut]:
    path = folder / recordings.STEPS_FILE
    step_times(stand).save(path)
    yield path


def _write_hand_off(stand: Stand, folder: Path) -> Iterator[Path | LeftOut]:
    """On a GPU of SMALL, whatever the other parts are of."""
    path = folder / recordings.HAND_OFF_FILE
    stand.close()
    small = make_stand(SMALL, stand.say) if stand.on_gpu else stand
    torch.compiler.reset()  # as where a stand loads another model
    try:
        hand_off_times(small).save(path)
    finally:
        small.close()
        torch.compiler.reset()
    yield path


Write = Callable[[Stand, Path], Iterator[Path | LeftOut]]


def _written(runs: Callable[[Stand], Iterator[tuple[Any, Run | LeftOut]]], file: Callable[[Any], str]) -> Write:
    """Saves each run under the name that `file` makes of what the run is called."""

    def write(stand: Stand, folder: Path) -> Iterator[Path | LeftOut]:
        for name, run in runs(stand):
            if isinstance(run, LeftOut):
                yield run
                continue
            run.save(path := folder / file(name), overwrite=True)
            yield path

    return write


ONE_GPU: dict[str, Write] = {
    "steps": _write_steps,
    "hand_off": _write_hand_off,
    "timelines": _written(side_by_side, recordings.timeline_file),
    "splits": _written(splits, recordings.split_file),
    "staged": _written(staged_runs, recordings.staged_file),
}
TWO_GPUS: dict[str, Write] = {
    "crowd": _written(crowd_runs, recordings.pair_file),
    "routes": _written(route_runs, recordings.pair_file),
    "paged": _written(paged_runs, recordings.pair_file),
}


def chosen(parts: dict[str, Write], only: str | None) -> dict[str, Write]:
    """Parts by name, comma between; all of them without a name."""
    asked = [name.strip() for name in only.split(",")] if only else list(parts)
    for name in asked:
        if name not in parts:
            raise ConfigError(f"--only {name}: no such part; known: {', '.join(parts)}")
    return {name: write for name, write in parts.items() if name in asked}


def record(stand: Stand, folder: Path, only: str | None = None) -> Iterator[Path | LeftOut]:
    """Each file when it is written; a part that fails leaves the others standing, with its reason and a traceback."""
    parts = chosen(TWO_GPUS if stand.pair else ONE_GPU, only)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{folder} can't be made: {error.strerror or error}") from None
    try:
        for part, write in parts.items():
            try:
                yield from write(stand, folder)
            except Exception as error:
                traceback.print_exc()
                stand.close()
                yield Failed.of(part, error)
    finally:
        stand.close()
