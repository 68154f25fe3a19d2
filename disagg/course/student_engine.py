"""An engine made of a student's pieces: the real model computes, and a virtual clock says how long everything takes."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from disagg.course.bridge import MyRows, OneRow, best
from disagg.plan.blocks import blocks_for
from disagg.plan.config import Config
from disagg.plan.errors import EngineError
from disagg.plan.link import Link
from disagg.plan.request import Request
from disagg.run.model.model import Model
from disagg.trace.results import Run
from disagg.twin.simulate import simulate
from disagg.twin.simulated_engine import Speeds
from disagg.twin.simulated_lanes import VirtualClock

SIZE = 16  # tokens of a block


@dataclass
class MyRow:
    """A request on its way; `parts` counts what decode waits for: each layer that landed, and token 1."""

    id: int
    prompt: list[int]
    new: int
    ends: tuple[int, ...]  # token ids that end an answer
    table: Any
    tokens: list[int] = field(default_factory=list)
    times_ns: list[int] = field(default_factory=list)
    parts: int = 0

    @property
    def done(self) -> bool:
        return len(self.tokens) == self.new or self.tokens[-1] in self.ends

    def say(self, token: int, at_ns: int) -> None:
        self.tokens.append(token)
        self.times_ns.append(at_ns)


class MySetting(NamedTuple):
    """Of a serve: places in the batch, bounds of the bins, ns between arrivals, bytes a second of each link, blocks."""

    places: int = 4
    bounds: tuple[int, ...] = (48,)
    every_ns: int = 200_000_000
    bandwidth: float = 20e6
    blocks: int = 64


class Hops(VirtualClock):
    """Queue → link one → ring → queue → link two; without a ring one link goes all the way. Times in ns."""

    def __init__(self, queue: Callable[[], Any], ring: Callable[[], Any] | None) -> None:
        super().__init__()
        self.down, self.up = queue(), queue()
        self.ring: Any = ring and ring()
        self.slot: dict[tuple[int, int], int] = {}  # of the ring
        self.copies: list[tuple[str, int, int, int, int]] = []  # lane, request, layer, start, end

    def put(self, request: int, layer: int, takes: int) -> None:
        """The K/V of this layer exist; each hop takes so long."""
        self.down.put(request, layer, takes)

    def read(self, request: int, layer: int) -> Any:
        return request, layer

    def land(self, request: int, layer: int, data: Any) -> None:
        """They are on the decode device."""

    def run(self) -> None:
        while self.step():
            self.go_on()

    def go_on(self) -> None:
        """Whatever can start, starts: hop one needs a slot of the ring, and hop two holds it to its end."""
        now = self.now_ns
        if (self.ring is None or self.ring.free) and (copy := self.down.take(now)):
            request, layer, takes = copy
            data = self.read(request, layer)
            self._fly("down" if self.ring else "direct", *copy)
            if self.ring is None:
                self.at(now + takes, self.land, request, layer, data)
            else:
                if (slot := self.ring.put(data)) is None:
                    raise EngineError(f"the ring has slots {self.ring.free} free, and put gives None")
                self.at(now + takes, self._up, *copy, slot)
        if copy := self.up.take(now):
            request, layer, takes = copy
            self._fly("up", *copy)
            self.at(now + takes, self._out, request, layer)

    def _fly(self, lane: str, request: int, layer: int, takes: int) -> None:
        if any(copy[:3] == (lane, request, layer) for copy in self.copies):
            raise EngineError(f"layer {layer} of request {request} takes the same link ({lane}) a second time")
        self.copies.append((lane, request, layer, self.now_ns, self.now_ns + takes))

    def _up(self, request: int, layer: int, takes: int, slot: int) -> None:
        self.slot[request, layer] = slot
        self.up.put(request, layer, takes)

    def _out(self, request: int, layer: int) -> None:
        self.land(request, layer, self.ring.take(self.slot.pop((request, layer))))


class MyServing(Hops):
    """Prefill → hops → blocks → decode. The model computes, `speeds` say how long it takes."""

    def __init__(self, pieces: dict[str, Any], model: Model, setting: MySetting) -> None:
        super().__init__(pieces["queue"], pieces["ring"])
        self.mine, self.model, self.setting, shape = pieces, model, setting, model.shape
        self.speeds = Speeds(layers=shape.layers, token_bytes=shape.token_bytes)
        self.free = list(range(setting.blocks))  # of the decode memory
        self.memory = torch.zeros(shape.layers, 2, setting.blocks * SIZE, shape.kv_heads, shape.head_dim)
        self.arrived: deque[MyRow] = deque()
        self.landed: list[MyRow] = []
        self.batch: list[MyRow] = []
        self.held: dict[int, dict] = {}  # K/V on the prefill device, by request and layer
        self.rows: list[MyRow] = []
        self.prefilling = self.stepping = False

    def serve(self, prompts: Sequence[list[int]], new: int) -> list[MyRow]:
        for number, prompt in enumerate(prompts):
            row = MyRow(number, prompt, new, self.model.eos_ids, self.mine["table"](self.free, SIZE))
            self.rows.append(row)
            self.at(number * self.setting.every_ns, self.arrived.append, row)
        self.run()
        if open_rows := [row.id for row in self.rows if not row.tokens or not row.done]:
            raise EngineError(f"nothing is left to do, and these have not ended: {open_rows}; which piece lost them?")
        return self.rows

    def go_on(self) -> None:
        if self.arrived and not self.prefilling and self.arrived[0].table.add(len(self.arrived[0].prompt)):
            self.prefill(self.arrived.popleft())
        super().go_on()
        if not self.stepping:
            self.decode()

    def read(self, request: int, layer: int) -> Any:
        return self.held[request].pop(layer)

    def prefill(self, row: MyRow) -> None:
        self.prefilling, tokens, layers = True, len(row.prompt), self.model.layers
        plan = OneRow(self.model, self.mine["cache"]())
        wanted = torch.tensor([tokens - 1])
        token = best(self.model.logits(plan, torch.tensor(row.prompt), torch.arange(tokens), wanted))[0]
        self.held[row.id] = plan.held
        lead, between, tail = self.speeds.pass_ns([(0, tokens)], 1, False)
        nbytes = blocks_for(tokens, SIZE) * SIZE * self.model.shape.layer_token_bytes  # whole blocks travel
        takes = Link(self.setting.bandwidth).occupancy_ns(nbytes)
        for layer in range(layers):
            self.at(self.now_ns + lead + layer * between, self.put, row.id, layer, takes)
        self.at(self.now_ns + lead + (layers - 1) * between + tail, self.prefilled, row, token)

    def prefilled(self, row: MyRow, token: int) -> None:
        self.prefilling = False
        row.say(token, self.now_ns)
        self.part(row)

    def land(self, request: int, layer: int, data: Any) -> None:
        """Out of the ring, into the slots of the request's blocks."""
        row = self.rows[request]
        self.memory[layer][:, row.table.slots()] = torch.stack(data)
        self.part(row)

    def part(self, row: MyRow) -> None:
        """With the last part it may join the batch, unless token 1 has ended it."""
        row.parts += 1
        if row.parts == self.model.layers + 1:
            row.table.give_back() if row.done else self.landed.append(row)

    def decode(self) -> None:
        """The student's batch takes a step: rows that left give their blocks back, the others get a slot each."""
        before, self.batch = self.batch, self.mine["batch"](self.batch, self.landed, self.setting.places)
        for row in before:
            if row not in self.batch:
                row.table.give_back()
        if not self.batch:
            return
        for row in self.batch:
            if not row.table.add(1):
                raise EngineError(f"no block for request {row.id}: all {self.setting.blocks} are held; give it more")
        slots = [row.table.slots() for row in self.batch]
        groups = self.mine["bins"]([len(row) for row in slots], self.setting.bounds)
        plan = MyRows(self.model, self.memory, slots, groups)
        ids = torch.tensor([row.tokens[-1] for row in self.batch])
        places = torch.tensor([len(row) - 1 for row in slots])
        padded = sum(len(group) * max(len(slots[row]) for row in group) for group in groups)
        self.stepping, took = True, self.speeds.step_ns(len(slots), padded, False)
        self.at(self.now_ns + took, self.stepped, best(self.model.call(plan, ids, places)))

    def stepped(self, tokens: list[int]) -> None:
        self.stepping = False
        for row, token in zip(self.batch, tokens, strict=True):
            row.say(token, self.now_ns)


def twin(rows: Sequence[MyRow], model: Model, setting: MySetting) -> Run:
    """The package's own controller on the same work."""
    link, shape = Link(setting.bandwidth), model.shape
    config = Config.preset("staged", model=model.name, link=link, ring_slots=2, block_size=SIZE, bins=setting.bounds)
    asked = [Request(row.prompt, len(row.tokens), row.id * setting.every_ns / 1e9, ignore_eos=True) for row in rows]
    config = config.replace(max_batch=setting.places, decode_blocks=setting.blocks)
    return simulate(config, asked, Speeds(layers=shape.layers, token_bytes=shape.token_bytes))
