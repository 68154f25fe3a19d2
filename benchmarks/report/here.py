"""What this machine measures: one GPU that plays both roles, two of them, or two workers on the CPU."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from benchmarks.common import Say, known
from benchmarks.fixed_works import work_a
from benchmarks.gpu import streaming
from benchmarks.gpu.fixture import SMALL, Scale, Stand
from benchmarks.gpu.rivals import short
from benchmarks.report.cell import (
    AS_WRITTEN,
    FAST,
    ONE_BY_ONE,
    ONE_SETTING,
    OURS,
    RIVALS,
    SLOW,
    TARGETS,
    About,
    Cell,
    attention_of,
    gains_of,
    median_run,
)
from disagg.plan.errors import EngineError
from disagg.plan.request import Request
from disagg.run.gpu.machine import gpu_in_words, in_words
from disagg.trace.law import Law
from disagg.trace.results import Run

#: Sizes for minutes; and the crowd: prompts, tokens of each, new ones of each.
ON_GPU = (replace(Scale(), prompts=(2048,), repeats=3), (64, 128, 64))
ON_CPU = (replace(SMALL, streamed=128, prompts=(128,), repeats=3, work_a=(10, (32, 64), 24)), (12, 16, 32))


class Here:
    """The table's cells that this machine can measure."""

    def __init__(self, stand: Stand, crowd: tuple[int, int, int]) -> None:
        self.stand, self.crowd = stand, crowd

    def about(self, tried: str, setting: str, run: Run) -> About:
        machine = f"{gpu_in_words()}; {in_words()}" if self.stand.on_gpu else in_words()
        return About("ran", tried, f"{self.stand.name}: {setting}", machine, attention_of(run))

    @cached_property
    def dialled(self) -> dict[str, list[Run]]:
        """One prompt over the staged route, on a link as slow as the law wants for each share."""
        stand, engine = self.stand, streaming.staged_engine(self.stand)
        compute_s, tail_s = streaming.compute_alone(stand, engine)
        law = Law(stand.model.layers, compute_s, (0.0, 0.0), tail_s, ring_slots=engine.config.ring_slots)
        dials = {claim: streaming.dial_for(TARGETS[claim], law) for claim in (SLOW, FAST)}
        if missing := [claim for claim, dial in dials.items() if dial is None]:
            words = f"{law.layers} layers of {1e3 * compute_s:.2f} ms, a tail of {1e3 * tail_s:.2f} ms"
            raise EngineError(
                f"no link gives {', '.join(missing)} on the staged route of this machine by the law: {words}"
            )
        found = streaming.over_dials(stand, engine, {name: known(dial) for name, dial in dials.items()}, compute_s)
        return {claim: [on for _, on in pairs] for claim, _, pairs in found}

    def link(self, claim: str) -> float:
        """Bytes a second of the dialled link."""
        return self.dialled[claim][0].config.links[0].bandwidth

    def overlap(self) -> Iterator[Cell]:
        stand = self.stand
        for claim, runs in self.dialled.items():
            stand.say(f"{claim}: the same link, in one piece")
            run, tokens = median_run(runs), stand.scale.streamed
            asked = [stand.requests([tokens], 2, seed) for seed in range(stand.scale.repeats)]
            whole = [self.served("split", one, link=self.link(claim)) for one in asked]
            about = self.about(AS_WRITTEN, f"one prompt of {tokens} tokens through host memory", run)
            yield about.overlap(claim, run, median_run(whole), by_law=True)

    def served(self, preset: str, requests: list[Request], **live: Any) -> Run:
        """The requests on an engine with room for all, after a few short answers to warm it."""
        lengths = [len(request.prompt) + request.max_new_tokens for request in requests]
        more = {} if preset == ONE_BY_ONE else {"max_batch": len(requests)}
        engine = self.stand.engine(preset, lengths, prefill=sum(lengths), **more)
        engine.serve(short(requests if self.stand.on_gpu else requests[:2], 2))
        if live:
            engine.retune(**live)
        return engine.serve(requests)

    def sides(self, requests: list[Request], presets: Sequence[str]) -> dict[str, Run]:
        found = {}
        for preset in presets:
            self.stand.say(f"{len(requests)} requests, preset {preset}")
            found[preset] = self.served(preset, requests)
        return found

    def gain(self) -> Iterator[Cell]:
        count, prompt, new = self.crowd
        sides = self.sides(self.stand.requests([prompt] * count, new, seed=1), (ONE_BY_ONE, *RIVALS, OURS))
        words = f"{count} prompts of {prompt} tokens at once, {new} new ones each"
        yield from gains_of(sides, self.about(AS_WRITTEN, words, sides[OURS]))

    def together(self) -> Iterator[Cell]:
        """Work A on one configuration for all four numbers; the two overlaps need two speeds of its link."""
        count, lengths, new = self.stand.scale.work_a
        requests = work_a(self.stand.model.vocab_size, 2, count, lengths, new)
        sides = self.sides(requests, (ONE_BY_ONE, *RIVALS))
        words = f"{OURS}, {count} prompts of {min(lengths)} to {max(lengths)} tokens at once, {new} new ones each"
        for claim in (SLOW, FAST):
            self.stand.say(f"{claim}: the same work")
            run, whole = (self.served(preset, requests, link=self.link(claim)) for preset in (OURS, "split"))
            about = self.about(ONE_SETTING, words, run)
            yield about.overlap(claim, run, whole)
        yield from gains_of(sides | {OURS: run}, replace(about, setting=f"{about.setting}; the faster link"))


def here(say: Say, shape: str | None = None) -> Here:
    """One GPU or two where torch finds them, else two workers on the CPU; a shape that fits unless one is named."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if shape is None:
        roomy = gpus and torch.cuda.get_device_properties(0).total_memory >= 40e9
        shape = "llama3-8b" if roomy else "qwen3-0.6b" if gpus else "smollm2"
    scale, crowd = ON_GPU if gpus else ON_CPU
    stand = Stand(shape, say, pair=gpus > 1)
    stand.scale = scale
    return Here(stand, crowd)
