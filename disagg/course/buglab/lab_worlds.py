"""Small scenes in which a bug shows: under the virtual clock, or on streams that are late.

A scene is played with or without the detectors. Notebook: notebooks/08_bug_lab.ipynb.
"""

import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Never

import torch

from disagg.course.buglab.lazy_stream import lazy_gpus
from disagg.monitor.monitor import Monitor
from disagg.monitor.violation import InvariantViolation
from disagg.plan import commands as cmd
from disagg.plan import events as ev
from disagg.plan.blocks import blocks_for
from disagg.plan.config import Config
from disagg.plan.controller import Controller
from disagg.plan.policy import FirstCome, Option
from disagg.plan.request import Job, Request, Waiting
from disagg.run.kv_cache import KVCache, KVShape, slots_of
from disagg.run.transfers import Departing, Transfers
from disagg.show.plots.summaries import plural
from disagg.trace.results import Result, Run
from disagg.twin.simulated_engine import SimulatedEngine, Speeds

#: Four layers and round costs: 2 ms for a pass and 0.1 ms for each of its tokens, 1 ms for its end, 10 ms for a step
#: and 1 ms a row.
_STEP = dict(step=10_000_000, step_row=1_000_000, step_token=0)
SPEEDS = Speeds(layers=4, token_bytes=4_000, prefill_pass=2_000_000, prefill_token=100_000, tail=1_000_000, **_STEP)
BLOCK_MS = 2  # of one layer of a block of 16 tokens on the scenes' link
BYTES_PER_S = 16_000 / (BLOCK_MS / 1e3)
SHIFT_NS = 20_000_000  # by at most so much a seed moves a cancel
LIMIT_STEPS = 100_000
LIMIT_S = 30.0  # nothing comes near it; it turns a hang into a failure


@dataclass(frozen=True)
class Played:
    """The result of a scene: its run if there was one, the violation or another error, and facts in words."""

    run: Run | None
    breach: InvariantViolation | None
    error: str | None = None
    facts: tuple[str, ...] = ()


# ---- under the virtual clock -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Simulated:
    """Requests under the virtual clock. What is done to them is named by its number or its instant."""

    config: Config
    requests: tuple[Request, ...]
    cancels: tuple[tuple[int, float], ...] = ()  # (request, ms)
    fails: int | None = None  # the copy that fails, counted as they end
    twice: int | None = None  # the landing that is reported twice
    eos_ids: frozenset[int] = frozenset()
    steps_in_flight: int = 1

    def play(self, watched: bool = True, seed: int | None = None) -> Played:
        """`seed` draws the order of what happens at once, lengths, and when what is done to the requests is done."""
        world = LabWorld(self, watched, seed)
        violation = error = None
        try:
            world.run()
        except InvariantViolation as found:
            violation = found
        except Exception as stopped:  # the shipped guards' own words
            error = f"{type(stopped).__name__}: {stopped}"
        run = world.recorder.run(world.config, list(world.results.values()))
        return Played(run, violation, error, tuple(facts_of(run, error)))


@dataclass(frozen=True)
class Ways(FirstCome):
    """Goes these ways, in turn of the requests' numbers, so that a scene does not hang on estimates."""

    name: str = "ways"
    ways: tuple[str, ...] = ()

    def choose(self, request: Waiting, options: tuple[Option, ...], now_ns: int) -> Option:
        wanted = self.ways[request.id % len(self.ways)]
        return next((option for option in options if option.way == wanted), options[0])


class LabWorld(SimulatedEngine):
    def __init__(self, scene: Simulated, watched: bool, seed: int | None) -> None:
        self._dice = None if seed is None else random.Random(seed)
        ahead = scene.steps_in_flight if self._dice is None else self._dice.choice((1, 2))
        super().__init__(scene.config, SPEEDS, ahead)
        self.listener = Listener(self.controller, SPEEDS.layers, keeps=False) if watched else None
        self._fails, self._twice = self._drawn(scene.fails), self._drawn(scene.twice)
        self._ends = self._landings = 0  # copies ended, landings reported
        for number, request in enumerate(scene.requests):
            assert not isinstance(request.prompt, str), "a scene's prompts are token ids"
            prompt, new, arrival = tuple(request.prompt), request.max_new_tokens, round(request.arrival_s * 1e9)
            if self._dice is not None:  # shorter ones fit as well
                prompt, new = prompt[: self._dice.randint(1, len(prompt))], self._dice.randint(1, new)
            self.submit(Job(number, prompt, new, arrival, scene.eos_ids))
        for cancelled, at_ms in scene.cancels:
            shift = 0 if self._dice is None else self._dice.randrange(-SHIFT_NS, SHIFT_NS)
            self.at(max(0, round(at_ms * 1e6) + shift), self.deliver, ev.Cancel(cancelled))

    def _drawn(self, number: int | None) -> int | None:
        return number if number is None or self._dice is None else self._dice.randrange(1, 2 * number)

    def _tie(self) -> float:
        return 0 if self._dice is None else self._dice.random()

    def run(self, limit_steps: int = LIMIT_STEPS) -> None:
        """To the end, past deadlines; then nothing may be held."""
        super().run(limit_steps)
        if self.listener:
            self.listener.monitor.drained(self.now_ns)

    def pass_deadline(self) -> bool:
        if not self.skip_to_deadline():
            return False
        if self.listener:
            self.listener.monitor.watchdog(self.now_ns)
        self.deliver(ev.Tick())
        return True

    def deliver(self, event: ev.Event) -> None:
        super().deliver(event)
        if isinstance(event, ev.Landed):
            self._landings += 1
            if self._landings == self._twice:
                self.deliver(event)

    def land(self, copy: Any) -> None:
        self._ends += 1
        if self._ends != self._fails:
            super().land(copy)
            return
        for notice in self.transfers.fail(copy, "the wire broke", self.now_ns):
            self.deliver(notice)
        self.drive_lanes()


class Listener:
    """Hands a Monitor each event, move and command of a controller. `keeps`: a violation is kept; the run goes on."""

    def __init__(self, controller: Controller, layers: int, keeps: bool) -> None:
        self.monitor, self._keeps = Monitor(controller.state.config, layers=layers), keeps
        self.violation: InvariantViolation | None = None
        self._handle = controller.handle
        controller.handle = self.handle  # type: ignore[method-assign]  # of this controller alone
        controller.state.on_move.append(self._moved)  # a real engine has detectors of its own, which are called first

    def handle(self, event: ev.Event, now_ns: int) -> list[cmd.Command]:
        self._check(self.monitor.hear, now_ns, event)
        commands = self._handle(event, now_ns)
        for command in commands:
            self._check(self.monitor.obey, now_ns, command)
        if isinstance(event, ev.TransferFailed) and "digest differs" in event.error:
            self._check(raise_digest, event.error)
        self._check(self.monitor.settle)
        return commands

    def _moved(self, *move: Any) -> None:
        self._check(self.monitor.moved, *move)

    def _check(self, rule: Callable, *what: Any) -> None:
        if self.violation is None:
            try:
                rule(*what)
            except InvariantViolation as found:
                self.violation = found
                if not self._keeps:
                    raise


def raise_digest(error: str) -> Never:
    raise InvariantViolation("Digest", error, None, (), ())


def facts_of(run: Run, error: str | None) -> list[str]:
    """A line a request: how it ended, what was copied, when decode began, when its blocks were free."""
    lines = [fact_of(run, result) for result in run.results]
    lines += dict.fromkeys(f"said: {result.error}" for result in run.results if result.error)
    if run.anomalies:
        lines.append(f"notices that came late, twice or for nothing: {run.anomalies}")
    return [*lines, f"stopped by {error}"] if error else lines


def fact_of(run: Run, result: Result) -> str:
    number, spans = result.request, [span for span in run.timeline.spans if result.request in span.requests]
    end = f"{result.finish_reason} at {result.ended_ns / 1e6:.1f} ms" if result.finish_reason else "still open"
    words = [f"request {number}: {plural(len(result.token_ids), 'token')}, {end}"]
    copies = [span for span in spans if span.kind == "copy" and not span.place.startswith("down")]
    if copies:
        count = sum(span.count * span.blocks for span in copies)
        last = max(span.end_ns for span in copies)
        due = pieces_due(run, result)
        copied = f"{count} of {due}" if count <= due else f"{count}"  # more: it was computed again
        words.append(f"{copied} pieces copied, the last until {last / 1e6:.1f} ms")
    steps = [span.start_ns for span in spans if span.kind == "decode"]
    if steps:
        words.append(f"first step at {min(steps) / 1e6:.1f} ms")
    held = held_before(run, number, result.ended_ns) if result.finish_reason == "failed" else {}
    if held:
        words.append("held until then " + ", ".join(f"{count} blocks of {pool}" for pool, count in held.items()))
    elif (freed := last_freed_ns(run, number)) is not None:
        words.append(f"its blocks free at {freed / 1e6:.1f} ms")
    return "; ".join(words)


def pieces_due(run: Run, result: Result) -> int:
    """A piece is one layer of one block."""
    return SPEEDS.layers * blocks_for(result.prompt_tokens, run.config.block_size)


def last_freed_ns(run: Run, request: int) -> int | None:
    """When the last of its blocks became free; None where some never did, or it had none."""
    owner: dict[tuple[str, int], int] = {}
    freed = None
    for move in run.timeline.moves:
        for block in move.blocks:
            had = owner.pop((move.pool, block), None)
            if move.owner is not None:
                owner[move.pool, block] = move.owner
            elif had == request:
                freed = move.at_ns
    return None if request in owner.values() else freed


def held_before(run: Run, request: int, at_ns: int) -> Counter[str]:
    """Its blocks a memory, just before an instant."""
    owner: dict[tuple[str, int], int | None] = {}
    for move in run.timeline.moves:
        if move.at_ns < at_ns:
            owner |= {(move.pool, block): move.owner for block in move.blocks}
    return Counter(pool for (pool, _), had in owner.items() if had == request)


# ---- on streams that are late ----------------------------------------------------------------------------------------

PREFILL, DECODE, HOST = cmd.Worker("prefill", 0), cmd.Worker("decode", 0), cmd.Worker("host", 0)
BLOCK, HOST_BLOCKS = 4, 9


@dataclass(frozen=True)
class Streams:
    """One hand-off between two caches that pass for GPUs' (lazy_stream), read by decode at each landing."""

    route: str = "direct"
    blocks: tuple[int, ...] = (7, 2, 9)  # of the prefill device
    onto: tuple[int, ...] = (1, 4, 0)
    shape: KVShape = field(default_factory=lambda: KVShape(3, 2, 4, torch.float32))

    def play(self, watched: bool = True, seed: int | None = None) -> Played:
        with lazy_gpus(HOST_BLOCKS, seed):
            counts = {PREFILL: 11, DECODE: 13, HOST: HOST_BLOCKS}
            caches = {worker: KVCache(self.shape, count, BLOCK) for worker, count in counts.items()}
            sizes = dict(prefill_blocks=11, decode_blocks=13, host_blocks=HOST_BLOCKS, layers_per_copy=1)
            config = Config(route=self.route, block_size=BLOCK, chunk_tokens=16).replace(**sizes)
            reader = LandedReader(caches[DECODE], self.onto, self._data())
            transfers = Transfers(config, caches, reader.hear, lambda span: None)
            transfers.start()
            try:
                self._prefill(transfers, caches[PREFILL], reader.left)
                assert reader.over.wait(LIMIT_S), f"nothing more comes after {reader.facts}"
            finally:
                transfers.close()
        return Played(None, reader.violation, None, tuple(reader.facts))

    def _data(self) -> torch.Tensor:
        """K/V of the request: [layers, 2, tokens, heads, head_dim]."""
        shape = self.shape
        size = (shape.layers, 2, len(self.blocks) * BLOCK, shape.kv_heads, shape.head_dim)
        return torch.randn(size, generator=torch.Generator().manual_seed(1))

    def _prefill(self, transfers: Transfers, cache: KVCache, data: torch.Tensor) -> None:
        """Writes K/V on a stream, and hands each layer off."""
        slots = slots_of(self.blocks, 0, data.shape[2], BLOCK)
        transfers.obey(cmd.Send(1, self.route, 0, PREFILL, 0, self.blocks, len(self.blocks), (0,), False))
        transfers.obey(cmd.Assign(1, DECODE, self.onto))
        with torch.cuda.stream(torch.cuda.Stream()):
            for layer, (key, value) in enumerate(data):
                cache.write(layer, slots, key, value)
                transfers.hand_off(layer, [Departing(1, 0, slice(None))], key, value)


class LandedReader:
    """Reads a layer in decode's place as soon as its landing is reported."""

    def __init__(self, cache: KVCache, blocks: tuple[int, ...], left: torch.Tensor) -> None:
        self.cache, self.blocks, self.left = cache, blocks, left
        self.facts: list[str] = []
        self.violation: InvariantViolation | None = None
        self.over = threading.Event()
        self._layers = 0

    def hear(self, notice: Any) -> None:
        if self.over.is_set():
            return
        match notice:
            case ev.TransferFailed():
                self.facts.append(f"the hand-off failed: {notice.error}")
                self._end(notice.error)
            case ev.WorkerDied():
                self._end(f"{notice.worker} died: {notice.error}", "Drain")
            case ev.Landed():
                for layer in range(notice.parts[0].layer, notice.parts[0].layer_end):
                    self._read(layer)

    def _read(self, layer: int) -> None:
        key, value = self.cache.tokens(layer, self.blocks, self.left.shape[2])
        same = torch.equal(torch.stack([key, value]), self.left[layer])
        held = "the bytes that left" if same else "other bytes than those that left"
        self.facts.append(f"layer {layer} was said to have landed; its blocks held {held}")
        self._layers += 1
        if not same:
            self._end(f"digest differs where decode reads: request 0, layer {layer}")
        elif self._layers == len(self.left):
            self.over.set()

    def _end(self, error: str, detector: str = "Digest") -> None:
        self.violation = InvariantViolation(detector, error, 0, self.blocks, self.facts)
        self.over.set()
