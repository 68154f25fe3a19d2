"""The twin against everything it can be held to: recorded decisions, closed forms, real runs, and a day of requests."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import day, on_record
from benchmarks.common import Say
from benchmarks.robustness import closed_forms
from benchmarks.robustness.random_scenarios import simulate_seed
from disagg.plan import commands as cmd
from disagg.plan import events as ev
from disagg.plan.config import PRESETS, Config
from disagg.plan.request import Request
from disagg.run.engine import Engine
from disagg.run.model.model import Model, load_model
from disagg.show.recordings import Missing
from disagg.show.report import LeftOut, Row
from disagg.show.validate import cpu_rows, error_rows
from disagg.twin.replay import in_lines, replay


def suite(say: Say, traces: Sequence[Path] = ()) -> Iterator[Row | LeftOut]:
    """All of it; the first of the traces is Azure's conversations, for the day."""
    yield decisions_row(say)
    say("closed forms")
    yield from closed_forms.rows()
    yield log_hash_row(say)
    yield from cpu_rows(say, load_model("smollm2"))
    yield from gpu_rows()
    yield from day.rows(say, traces[0] if traces else None)


# ---- decisions -------------------------------------------------------------------------------------------------------


def decisions_row(say: Say) -> Row:
    """Every preset on the real engine with cancels and live changes; its events once more under no clock at all."""
    same, commands = 0, 0
    for preset in PRESETS:
        say(f"decisions of {preset}")
        given, again = decisions(preset)
        same, commands = same + (in_lines(given) == in_lines(again)), commands + len(given)
    note = f"presets whose command log is identical byte for byte, {commands:,} commands in all"
    return Row("decisions_identical", same, "presets", len(PRESETS), len(PRESETS), note, at_most=False)


def decisions(preset: str, model: Model | None = None) -> tuple[list, list]:
    """(ns, command) of a real engine's controller, and of a fresh one over the same events."""
    model = model or load_model("tiny")
    few = {"prefill_blocks": 40, "decode_blocks": 24, "host_blocks": 60, "block_size": 4, "chunk_tokens": 48}
    with Engine(Config.preset(preset, model=model.name, **few), model=model) as engine:
        events, given = _recorded(engine)
        first = engine.config
        handles = [engine.submit(request) for request in _asked()]
        handles[3].cancel()
        engine.retune(max_batch=3)
        for handle in handles:
            handle.result()
        ahead = engine.controller.state.steps_in_flight
    shape = {"layers": model.shape.layers, "token_bytes": model.shape.token_bytes}
    before = [known for known in engine.recorder.probed if known not in events]  # heard before anyone listened
    return given, replay(first, [*before, *events], **shape, steps_in_flight=ahead, pads=engine.attention_path.pads)


def _recorded(engine: Engine) -> tuple[list, list]:
    """Events and commands of the engine's controller from now on."""
    events: list[tuple[int, ev.Event]] = []
    given: list[tuple[int, cmd.Command]] = []
    handle = engine.controller.handle

    def recording(event: ev.Event, now_ns: int) -> list[cmd.Command]:
        events.append((now_ns, event))
        commands = handle(event, now_ns)
        given.extend((now_ns, command) for command in commands)
        return commands

    vars(engine.controller)["handle"] = recording  # of this engine alone
    return events, given


def _asked() -> list[Request]:
    return [Request([7 * n % 256 for n in range(length)], new, ignore_eos=True)
            for length, new in ((30, 12), (9, 20), (44, 6), (17, 30), (5, 9), (38, 14))]  # fmt: skip


def log_hash_row(say: Say) -> Row:
    """Seeds of simulated worlds in processes with other hash seeds: the log's bytes are the same."""
    say("logs under other hash seeds")
    seeds, script = range(20), "from benchmarks.twin_accuracy import log_hash; print(log_hash())"
    expected, same = log_hash(seeds), 0
    for number in ("0", "1", "random"):
        environment = {**os.environ, "PYTHONHASHSEED": number}
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
        same += done.stdout.strip() == expected
    return Row("log_hash_equal", same, "processes", 3, 3, f"{len(seeds)} worlds, sha256 {expected[:12]}", at_most=False)


def log_hash(seeds: Sequence[int] = range(20)) -> str:
    """sha256 over the event logs of these worlds."""
    total = hashlib.sha256()
    for seed in seeds:
        total.update(in_lines(simulate_seed(seed).log))
    return total.hexdigest()


# ---- figures ---------------------------------------------------------------------------------------------------------


def gpu_rows() -> Iterator[Row | LeftOut]:
    """Fitted to some recordings of one H200, asked about others."""
    compared = on_record.compared()
    if isinstance(compared, Missing) or not compared:
        yield LeftOut("gpu_error_pct", repr(compared))
        return
    yield from error_rows("gpu_error_pct", compared, {"median": 10})
