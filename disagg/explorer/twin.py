"""One run of the twin in slices, what the page shows of it, and what the page's worker calls."""

import json
import re
from collections.abc import Mapping
from typing import Any

from disagg.course.scenes import SCENES
from disagg.explorer.settings import CONTROLS, ExplorerSettings
from disagg.plan.errors import ConfigError, DisaggError
from disagg.show.plots.summaries import NO_ANSWER, milliseconds, row_names, sentence
from disagg.show.scene import Scene
from disagg.trace.metrics import Percentiles
from disagg.trace.results import Run
from disagg.twin.model_shapes import RANDOM
from disagg.twin.replay import in_lines
from disagg.twin.simulate import simulation_on

TTFT_LIMIT_S, TPOT_LIMIT_S = 1.0, 0.05
ADVICE = re.compile(r"[.;] take .*", re.IGNORECASE | re.DOTALL)  # to those who write Python


class Twin:
    """`advance` until it says that all has happened; then `run`, the same Run as `simulate` gives."""

    def __init__(self, settings: ExplorerSettings) -> None:
        """ConfigError where these settings can't be: a model that does not fit says by how many bytes."""
        try:
            self.world = simulation_on(settings.hardware, settings.config, settings.asked)
        except ConfigError as error:
            raise ConfigError(_on_the_page(str(error))) from None

    def advance(self, actions: int) -> bool:
        """Lets so many things happen; False where nothing is left to."""
        step = self.world.step
        return all(step() for _ in range(actions))

    def run(self) -> Run:
        self.world.run()  # to the end; an open request would be named
        return self.world.so_far()


def _on_the_page(words: str) -> str:
    """A refusal whose advice is one of the page's controls."""
    better = "Choose a slower link, or GPUs" if words.startswith("link") else "Choose another device or a smaller model"
    return ADVICE.sub(f". {better}", words.removeprefix(RANDOM))


class Explorer(Scene):
    """A load of many requests on devices that are chosen: other figures count than those of a chapter's few."""

    def facts(self, run: Run, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
        return facts(run)

    def answer(self, run: Run, settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        said, columns = super().answer(run, settings)
        return {**said, "counts": sentence(run, times=False)}, columns


EXPLORER = Explorer("", CONTROLS, lambda **chosen: Twin(ExplorerSettings(**chosen)).run(), views=("flow", "timeline"))
SHOWN = {**SCENES, "explorer": EXPLORER}


class Desk:
    """What the page's worker calls, with texts as JSON. One run at a time: `begin` drops what was under way; the last
    answer stays until there is another."""

    def __init__(self) -> None:
        self._twin: Twin | None = None
        self._run: Run | None = None

    def begin(self, name: str, given: str) -> str:
        """Settings of a scene as JSON; returns why they are refused, or nothing. Only the explorer's run is so long
        that it comes in slices."""
        scene = SHOWN[name]
        try:
            settings = scene.settings(json.loads(given))
            if scene is EXPLORER:
                self._twin = Twin(ExplorerSettings(**settings))
            else:
                self._twin, self._run = None, scene.run(**settings)
        except DisaggError as error:
            return str(error)
        self._asked = scene, settings
        return ""

    def advance(self, actions: int) -> bool:
        return self._twin is not None and self._twin.advance(actions)

    def answer(self) -> tuple[str, list[bytes]]:
        """Once nothing is left to happen: JSON of sentences and figures, and the columns of what is drawn."""
        if self._twin is not None:
            self._run = self._twin.run()
        assert self._run is not None, "answer comes after begin"
        scene, settings = self._asked
        said, columns = scene.answer(self._run, settings)
        return json.dumps(said), columns

    def log(self) -> bytes:
        return in_lines(self._run.log) if self._run else b""


def facts(run: Run) -> list[tuple[str, str]]:
    metrics, overlap = run.metrics(TTFT_LIMIT_S, TPOT_LIMIT_S), run.overlap()
    none = "–" if overlap.transfer_s else "nothing copied"
    hidden, wall = (none if share is None else f"{share:.0%}" for share in (overlap.share, overlap.wall))
    ends = ", ".join(f"{count} {reason}" for reason, count in metrics.finished.items() if reason in NO_ANSWER)
    return [
        *([("requests without an answer", ends)] if ends else []),
        ("TTFT, half and 99 % within", _half_and_most(metrics.ttft_s)),
        ("second-token gap, likewise", _half_and_most(metrics.second_token_gap_s)),
        ("TPOT, likewise", _half_and_most(metrics.tpot_s)),
        ("new tokens a second", f"{metrics.tokens_per_s:.0f}"),
        (f"TTFT ≤ {TTFT_LIMIT_S:g} s and TPOT ≤ {milliseconds(TPOT_LIMIT_S)}", f"{metrics.attainment:.0%}"),
        ("H, copying that is hidden", hidden),
        ("W, copying time in which prefill computes", wall),
        ("E, copying left after tokens 1, all requests", milliseconds(overlap.exposed_s)),
        *((f"{name} busy", f"{metrics.busy[place]:.0%}") for place, name in row_names(run.timeline).items()),
    ]


def _half_and_most(found: Percentiles) -> str:
    if found.p50 is None or found.p99 is None:
        return "none"
    return f"{milliseconds(found.p50)}; {milliseconds(found.p99)}"
