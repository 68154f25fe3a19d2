"""What the controller received and answered at an earlier version: the same, entry by entry, under today's names.

`golden/PRESET.txt.gz` holds the log of a seeded world a preset (a line each: E or C, the time in ns, the event or the
command); `golden/tiny.txt.gz` the log of a real run on the model `tiny`, which a fresh controller must answer with the
same commands; `golden/seeds.txt` a digest for each of a few worlds with faults. Names that were changed since stand in
`golden/names.txt`, a line each: the name of today, and the one in the files.
    python tests/test_golden.py     # writes the files anew, after a change of behaviour on purpose
"""

import gzip
import hashlib
import random
import re
import sys
from pathlib import Path

import pytest

from benchmarks.robustness.random_scenarios import simulate_seed
from disagg.plan import commands, config, events, link, preemption, request
from disagg.plan.config import PRESETS, Config
from disagg.plan.controller import Controller
from disagg.plan.request import Job, Sampling
from disagg.twin.simulated_engine import SimulatedEngine, Speeds

GOLDEN = Path(__file__).parent / "golden"
SINCE = "overlap=True, pinned=True, "  # fields of a Config that came later
SEEDS = range(24)
SPEEDS = Speeds(layers=4, token_bytes=64)
SMALL = {"block_size": 4, "prefill_blocks": 24, "decode_blocks": 24, "chunk_tokens": 24, "watchdog_s": 100.0}


def old_names(text: str) -> str:
    """The text with the names of the golden files."""
    pairs = dict(line.split() for line in (GOLDEN / "names.txt").read_text().splitlines() if line)
    return re.sub(r"[A-Za-z_]\w*", lambda word: pairs.get(word[0], word[0]), text.replace(SINCE, ""))


def new_names(text: str) -> str:
    """The golden files' text with the names of today."""
    pairs = dict(line.split()[::-1] for line in (GOLDEN / "names.txt").read_text().splitlines() if line)
    return re.sub(r"[A-Za-z_]\w*", lambda word: pairs.get(word[0], word[0]), text)


class Listening(SimulatedEngine):
    """A world that keeps what its controller hears and says."""

    def __init__(self, config: Config):
        super().__init__(config, SPEEDS)
        self.lines: list[str] = []

    def deliver(self, event):
        self.lines.append(f"E {self.now_ns} {event!r}")
        super().deliver(event)

    def obey(self, command):
        self.lines.append(f"C {self.now_ns} {command!r}")
        super().obey(command)


def world_lines(preset: str) -> list[str]:
    """A seeded crowd on a preset: pools that run full, two cancels, one retune."""
    rng, now = random.Random(preset), 0
    sizes = {**SMALL, "host_blocks": 16 if preset in ("paged", "dynamic") else 0}
    asked = Config.preset(preset, **sizes)
    world = Listening(asked)
    for number in range(20):
        now += rng.randrange(0, 120_000_000)
        prompt = tuple(rng.choices(range(3, 900), k=rng.randrange(1, 50)))
        eos = frozenset({rng.randrange(3, 1000)})
        world.submit(Job(number, prompt, rng.randrange(1, 30), now, eos, sampling=Sampling(seed=number)))
    for number in (5, 11):
        world.at(number * 70_000_000, world.deliver, events.Cancel(number))
    world.at(700_000_000, lambda: world.retune(world.controller.state.config.replace(max_batch=3)))
    world.run()
    return world.lines


def seed_line(seed: int) -> str:
    log = "".join(f"{at} {event!r}\n" for at, event in simulate_seed(seed).log)
    return f"{seed} {hashlib.sha256(old_names(log).encode()).hexdigest()}"


def golden(name: str) -> list[str]:
    return gzip.decompress((GOLDEN / f"{name}.txt.gz").read_bytes()).decode().splitlines()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_seeded_world_hears_and_says_what_it_did(preset):
    for number, (now, then) in enumerate(zip(map(old_names, world_lines(preset)), golden(preset), strict=True), 1):
        assert now == then, f"line {number}"


def test_worlds_with_faults_go_as_they_did():
    assert [seed_line(seed) for seed in SEEDS] == (GOLDEN / "seeds.txt").read_text().splitlines()


def test_a_real_run_is_answered_with_the_same_commands():
    words = {}
    for part in (events, commands, config, link, preemption, request):
        words |= vars(part)
    header, *lines = golden("tiny")
    shape = eval(header, {})
    controller = Controller(eval(new_names(shape.pop("config")), words), **shape)
    heard = 0
    for line in lines:
        kind, now, entry = line.split(" ", 2)
        if kind == "E":
            said = controller.handle(eval(new_names(entry), words), int(now))
            answers, heard = iter(said), heard + 1
        else:
            assert old_names(repr(next(answers))) == entry
    assert heard > 50 and controller.state.records == {}


def tiny_lines() -> list[str]:
    """A real run of the whole pipeline, with pools so small that requests are preempted."""
    from engine_tools import lengths, opened, small

    lines: list[str] = []
    with opened(small("dynamic", chunk_tokens=48, decode_blocks=10, host_blocks=8)) as engine:
        handle = engine.controller.handle

        def listening(event, now_ns):
            said = handle(event, now_ns)
            lines.extend([f"E {now_ns} {event!r}", *(f"C {now_ns} {command!r}" for command in said)])
            return said

        engine.controller.handle = listening
        engine.serve(lengths((40, 12), (20, 3), (50, 40), (9, 48), (33, 48)))
        shape = engine.model.shape
        sizes = {"layers": shape.layers, "token_bytes": shape.token_bytes, "pads": engine.attention_path.pads}
        header = repr({"config": repr(engine.config), **sizes})
    return [header, *lines]


def write(name: str, lines: list[str]):
    (GOLDEN / f"{name}.txt.gz").write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    (GOLDEN / "names.txt").write_text("")
    for preset in PRESETS:
        write(preset, world_lines(preset))
    write("tiny", tiny_lines())
    (GOLDEN / "seeds.txt").write_text("\n".join(map(seed_line, SEEDS)) + "\n")
