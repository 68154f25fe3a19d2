"""The hand-off of captured passes on streams that do their work in any order that its waits allow (lazy_streams.py).

Passes of random sizes take two turns. Each must land with its own bytes and touch no others, whatever goes first.
"""

from contextlib import suppress
from random import Random
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from lazy_streams import LateDial, LateEvent, LateStream, Queues, Refused, late_streams

from disagg.run.gpu import hand_off_streams, hand_off_turn
from disagg.run.gpu.device import Scratch
from disagg.run.gpu.hand_off_streams import Steps
from disagg.run.gpu.hand_off_turn import HandOffTurn, Travel
from disagg.run.kv_cache import KVCache, KVShape

SOURCE_BLOCKS, TARGET_BLOCKS, MOST_BLOCKS = 10, 14, 5  # in the caches, and of a pass
TAKEN_AGAIN = 7777.0  # K/V of others, as soon as a pass has landed


class Flight(NamedTuple):
    """A pass on its way."""

    ended: LateEvent  # its hand-off
    computed: LateEvent
    refused: bool
    blocks: tuple[list[int], list[int]]  # at the source and the target
    expected: torch.Tensor  # what the target's blocks hold in the end
    rows: np.ndarray  # of its tokens, those that travel
    copies: int


class Passes:
    """Random passes from one cache to another."""

    def __init__(self, monkeypatch, random: Random, **fixed):
        """`fixed`: of what is drawn otherwise."""
        draw = {
            "shared": [None, None, 1, 2, 3], "layers": [1, 2, 3, 5, 6], "block": [1, 2, 3], "heads": [1, 2],
            "head_dim": [2, 3, 4], "dtype": [torch.float32, torch.bfloat16], "ring": [0, 1, 2, 3, 8],
            "group": [1, 1, 2, 4, 64], "most_runs": [0, 1, 4, 100], "depth": [1, 2, 4],
            "verify": [False, False, True], "dial_ns": [0, 1, 10**9],
        }  # fmt: skip
        drawn = {name: random.choice(choices) for name, choices in draw.items()} | fixed
        self.random, self.drawn = random, SimpleNamespace(**drawn)
        self.queues = Queues(random, self.drawn.shared)
        late_streams(monkeypatch, self.queues)
        monkeypatch.setattr(hand_off_turn, "MOST_RUNS", self.drawn.most_runs)
        for name, value in dict(DEPTH=self.drawn.depth, PROGRAMS=1, ROWS=16).items():
            monkeypatch.setattr(hand_off_streams, name, value)
        self._build()

    def _build(self) -> None:
        drawn, queues = self.drawn, self.queues
        self.shape = KVShape(drawn.layers, drawn.heads, drawn.head_dim, drawn.dtype)
        self.caches = [KVCache(self.shape, blocks, drawn.block) for blocks in (SOURCE_BLOCKS, TARGET_BLOCKS)]
        self.free = [set(range(cache.num_blocks)) for cache in self.caches]
        self.stream = LateStream(queues)
        hops, most = 2 if drawn.ring else 1, MOST_BLOCKS * drawn.block
        new = lambda device: LateStream(queues)  # noqa: E731
        dials = [LateDial(queues) for _ in range(hops)]
        copiers = [SimpleNamespace(streams=[new(None)], new_stream=new, prepare_dial=lambda d=d: d) for d in dials]
        ring = [Scratch(drawn.dtype) for _ in range(drawn.ring)]
        self.steps = Steps(*self.caches, copiers, ring, drawn.group, most)
        self.turns = [HandOffTurn(most, drawn.layers, hops, drawn.verify, [torch.device("cpu")]) for _ in range(2)]
        self.flights: list[Flight | None] = [None, None]
        torch.cuda.set_stream(self.stream)
        for turn in self.turns:
            turn.see(*torch.zeros(2, drawn.layers, dtype=torch.long))
            self.steps.prepare(turn)

    def play(self, count: int, refusals: float = 0.0) -> None:
        """So many passes, some of whose hand-offs the driver refuses from some operation on."""
        for number in range(count):
            self.land(number % 2)
            self.start(number % 2, self.random.random() < refusals)
            self.queues.steps(60)
        for number in (count, count + 1):
            self.land(number % 2)
        self.queues.finish()
        assert not self.caches[1].data.any(), "wrote where no pass goes, or after its end"

    # ---- a pass ------------------------------------------------------------------------------------------------------

    def start(self, number: int, refuse: bool) -> None:
        random, turn, layers = self.random, self.turns[number], self.shape.layers
        count = random.randrange(1, MOST_BLOCKS + 1)
        if count > min(map(len, self.free)):
            self.land(1 - number)
        blocks = self._take(0, count), self._take(1, count)
        tokens = count * self.drawn.block - random.randrange(self.drawn.block)
        slots, onto = (self._slots(each)[:tokens] for each in blocks)
        if random.random() < 0.4:
            first = random.randrange(tokens)
            onto[first : first + random.choice([1, 2]) * self.drawn.block] = -1
        rows = np.flatnonzero(onto >= 0)
        values = torch.randint(1, 100, (layers, 2, tokens, *self.caches[0].data.shape[4:])).to(self.drawn.dtype)
        expected = torch.zeros_like(self.caches[1].data).flatten(2, 3)
        expected[:, :, onto[rows]] = values[:, :, rows]
        self._compute(turn, slots, values)
        computed = LateEvent(self.queues)
        computed.record(self.stream)
        turn.flags.zero_()
        turn.times.zero_()
        if turn.sums is not None:
            turn.sums[:] = torch.arange(len(turn.sums)).view(-1, 1, 1)  # none equals another before both are taken
        busy = [(lambda count: self.drawn.dial_ns) if self.drawn.dial_ns else None] * len(turn.events)
        travel = Travel(slots, onto, layers, self._group(len(rows), tokens), busy)
        if refuse:
            self.queues.refuses_in = random.randrange(2 + 8 * len(travel.copies))
        refused = not self._enqueue(turn, travel)
        assert torch.cuda.current_stream() is self.stream
        self.flights[number] = Flight(self.steps.ended, computed, refused, blocks, expected, rows, len(travel.copies))

    def _take(self, end: int, count: int) -> list[int]:
        """Side by side as far as blocks are free there, or anywhere."""
        free = sorted(self.free[end])
        taken = self.random.sample(free, count) if self.random.random() < 0.6 else free[:count]
        self.free[end] -= set(taken)
        return taken

    def _slots(self, blocks: list[int]) -> np.ndarray:
        return np.array([block * self.drawn.block + place for block in blocks for place in range(self.drawn.block)])

    def _group(self, travelling: int, tokens: int) -> int:
        """Layers of a copy; as many as were asked for where no buffer holds as many as are asked for now."""
        steps, nbytes = self.steps, max(1, travelling) * self.shape.layer_token_bytes
        least = self.random.choice([0, 0, 0, 100, 400, 10000])
        asked = self.random.choice([self.drawn.group, self.drawn.group, 1, 2, 5])
        group = steps.group_of(asked, nbytes, tokens, least) or steps.group_of(self.drawn.group, nbytes, tokens, least)
        assert min(self.drawn.group, asked, self.shape.layers) <= group <= self.shape.layers
        return group

    def _compute(self, turn: HandOffTurn, slots: np.ndarray, values: torch.Tensor) -> None:
        """The pass: stores layer by layer."""
        held = self.caches[0].data.flatten(2, 3)
        for layer, value in enumerate(values):
            self.stream.put(lambda layer=layer, value=value: held[layer].index_copy_(1, torch.tensor(slots), value))
            self.stream.put(lambda layer=layer: turn.stored[layer].fill_(123))
            self.queues.steps(3)

    def _enqueue(self, turn: HandOffTurn, travel: Travel) -> bool:
        """Whether the driver took all of it."""
        with suppress(Refused):
            self.steps.enqueue(turn, travel)
            self.queues.refuses_in = None
            return True
        return False

    # ---- and its end -------------------------------------------------------------------------------------------------

    def land(self, number: int) -> None:
        flight, turn = self.flights[number], self.turns[number]
        if flight is None:
            return
        flight.ended.synchronize()
        source, target = flight.blocks
        arrived, expected = self.caches[1].data, flight.expected.view_as(self.caches[1].data)
        right = arrived[:, :, target] == expected[:, :, target]
        if flight.refused:
            assert (right | (arrived[:, :, target] == 0)).all(), f"wrong bytes of what left: {self.drawn}"
        else:
            assert right.all(), f"wrong bytes: {self.drawn}"
            if self.drawn.dial_ns:
                taken, left = turn.times[:, : flight.copies].unbind(2)
                assert (taken > 0).all() and (left > taken).all(), "a dial let a copy go unseen"
                assert (taken[1:] >= left[:1]).all(), "a copy went up before it was down"
            if turn.sums is not None:
                sums = turn.sums[:, :, flight.rows]
                assert (sums == sums[:1]).all(), f"checksums differ: {self.drawn}"
            self.caches[0].data[:, :, source] = TAKEN_AGAIN
        flight.computed.synchronize()  # no layer is stored after `clear`
        arrived[:, :, target] = 0
        self.steps.clear(turn)
        for free, blocks in zip(self.free, flight.blocks, strict=True):
            free |= set(blocks)
        self.flights[number] = None


@pytest.mark.parametrize("seed", range(200))
def test_passes_land_with_their_bytes_whatever_goes_first(monkeypatch, seed):
    random = Random(seed)
    torch.manual_seed(seed)
    Passes(monkeypatch, random).play(random.randrange(1, 6))


@pytest.mark.parametrize("seed", range(70))
def test_passes_land_after_some_whose_copies_could_not_be_launched(monkeypatch, seed):
    random = Random(seed)
    torch.manual_seed(seed)
    Passes(monkeypatch, random).play(4, refusals=0.4)
