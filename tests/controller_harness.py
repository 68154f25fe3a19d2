"""A controller fed by hand: one event at a time, virtual time, every pool checked after each."""

from disagg.plan import commands as cmd
from disagg.plan import events as ev
from disagg.plan.blocks import Part
from disagg.plan.config import Config
from disagg.plan.controller import Controller
from disagg.plan.request import Job

LAYERS = 2
PREFILL, DECODE = cmd.Worker("prefill", 0), cmd.Worker("decode", 0)


def make_job(request=0, prompt=6, new=4, eos=(), arrival=0) -> Job:
    return Job(request, tuple(range(100, 100 + prompt)), new, arrival, frozenset(eos))


class ControllerHarness:
    """Blocks of four tokens, two layers, eight blocks a pool, a watchdog of one second."""

    def __init__(self, preset="split", steps=1, **changes):
        sizes = {"block_size": 4, "prefill_blocks": 8, "decode_blocks": 8, "host_blocks": 0, "watchdog_s": 1.0}
        config = Config.preset(preset, **{**sizes, "chunk_tokens": 64, **changes})
        self.controller = Controller(config, layers=LAYERS, token_bytes=2 * LAYERS, steps_in_flight=steps)
        self.state = self.controller.state
        self.now = 0
        self.pass_ns = 10**6  # what a pass says it took: dear, so that a spill is cheaper
        self.out: list = []  # commands of the last event
        self.log: list = []  # all commands

    def tell(self, event, after=1) -> list:
        self.now += after
        self.out = self.controller.handle(event, self.now)
        self.log += self.out
        self.state.check()
        return self.out

    def last(self, kind):
        return next(command for command in reversed(self.log) if isinstance(command, kind))

    def kinds(self) -> list[str]:
        """Names of the last event's commands."""
        return [type(command).__name__ for command in self.out]

    def stage(self, request=0) -> str:
        return self.state.records[request].stage.value

    def held(self) -> tuple[int, ...]:
        """Blocks held, a pool: prefill, decode, host (colocated: decode, host)."""
        return tuple(pool.held for pool in self.state.pools())

    def submit(self, request=0, prompt=6, new=4, eos=()):
        return self.tell(ev.Submit(make_job(request, prompt, new, eos, self.now)))

    def cancel(self, request=0):
        return self.tell(ev.Cancel(request))

    def prefilled(self, *tokens):
        command = self.last(cmd.Prefill)
        return self.tell(ev.Prefilled(command.worker, command.pass_id, tokens, self.now, self.now + self.pass_ns))

    def stepped(self, *tokens, step=None):
        """The oldest step in flight ends."""
        worker = self.state.decodes[0]
        oldest = worker.steps[0]
        number = oldest.number if step is None else step
        event = ev.Stepped(DECODE, number, tokens, self.now, self.now + 1, oldest.used_slots, oldest.padded_slots)
        return self.tell(event)

    def part(self, layer: int, block=0, blocks=2) -> Part:
        return Part(layer, layer + 1, block, block + blocks)

    def landed(self, *parts: Part, transfer=None):
        number = self.transfer if transfer is None else transfer
        return self.tell(ev.Landed(number, parts, 16, 10))

    def land_all(self, transfer=None):
        """Everything due of the last transfer."""
        number = self.transfer if transfer is None else transfer
        blocks = self.state.transfers[number].blocks
        return self.landed(Part(0, LAYERS, 0, blocks), transfer=number)

    @property
    def transfer(self) -> int:
        return self.last(cmd.Send).transfer

    def ended(self) -> dict[int, str]:
        return {c.request: c.finish.value for c in self.log if isinstance(c, cmd.Ended)}

    def hand_off(self, request=0, prompt=6, new=4, token=11, eos=()) -> "ControllerHarness":
        """Submits a request and ends its prefill."""
        self.submit(request, prompt, new, eos)
        self.prefilled(token)
        return self

    def run_one(self, request=0, prompt=6, new=8, token=11, eos=()) -> "ControllerHarness":
        """Brings a split request to its first step."""
        self.hand_off(request, prompt, new, token, eos).land_all()
        return self

    @property
    def anomalies(self) -> int:
        return self.state.counts["anomalies"]


def parking(**changes) -> ControllerHarness:
    """Request 0 has decode's blocks, and request 1 prefill's: its hand-off goes to host memory from its first pass."""
    sizes = {"decode_blocks": 4, "host_blocks": 8, **changes}
    harness = ControllerHarness("paged", **sizes).run_one(0, prompt=10, new=4)
    harness.submit(1, prompt=10, new=4)
    return harness
