"""One run of the twin in slices, what the page shows of it, and what the page's worker calls."""

import json

from disagg.course.scenes import SCENES
from disagg.explorer.settings import ExplorerSettings
from disagg.plan.errors import DisaggError
from disagg.show.columns import SpanColumns, flow_columns, look
from disagg.show.plots.summaries import NO_ANSWER, milliseconds, row_names, sentence
from disagg.trace.metrics import Percentiles
from disagg.trace.results import Run
from disagg.twin.replay import in_lines
from disagg.twin.simulate import simulation_on

TTFT_LIMIT_S, TPOT_LIMIT_S = 1.0, 0.05


class Twin:
    """`advance` until it says that all has happened; then `run`, the same Run as `simulate` gives."""

    def __init__(self, settings: ExplorerSettings) -> None:
        """ConfigError where these settings can't be: a model that does not fit says by how many bytes."""
        self.world = simulation_on(settings.hardware, settings.config, settings.asked)

    def advance(self, actions: int) -> bool:
        """Lets so many things happen; False where nothing is left to."""
        step = self.world.step
        return all(step() for _ in range(actions))

    def run(self) -> Run:
        self.world.run()  # to the end; an open request would be named
        return self.world.so_far()


class Desk:
    """What the page's worker calls, with texts as JSON. One run at a time: `begin` drops what was under way; the last
    answer stays until there is another."""

    def __init__(self) -> None:
        self._twin: Twin | None = None
        self._run: Run | None = None

    def begin(self, given: str) -> str:
        """Settings as JSON of names and texts; returns why they are refused, or nothing."""
        try:
            self._twin = Twin(ExplorerSettings.parse(json.loads(given)))
        except DisaggError as error:
            return str(error)
        return ""

    def advance(self, actions: int) -> bool:
        assert self._twin is not None, "advance comes after begin"
        return self._twin.advance(actions)

    def answer(self) -> tuple[str, list[bytes]]:
        """Once nothing is left to happen: JSON of sentences and figures, and the columns of what is drawn."""
        assert self._twin is not None, "answer comes after begin"
        self._run = self._twin.run()
        answer, columns = shown(self._run)
        return json.dumps(answer), columns

    def play(self, scene: str, given: str) -> tuple[str, list[bytes]]:
        """A setting of a chapter's scene as JSON: what its instrument shows, or a refusal."""
        try:
            settings = SCENES[scene].settings(json.loads(given))
            said, columns = SCENES[scene].answer(SCENES[scene].run(**settings), settings)
        except DisaggError as error:
            return json.dumps({"refusal": str(error)}), []
        return json.dumps(said), columns

    def log(self) -> bytes:
        return in_lines(self._run.log) if self._run else b""


def shown(run: Run) -> tuple[dict, list[bytes]]:
    """What the page draws and says: a dict of plain values, and columns of spans, of the flow and of blocks."""
    spans = SpanColumns(run.timeline.start_ns)
    spans.add(run.timeline.spans)
    header, columns = spans.chunk()
    flow, more = flow_columns(run)
    answer = {
        "look": look(),
        "header": header,
        "flow": flow,
        "sentence": sentence(run),
        "counts": sentence(run, times=False),
    }
    return {**answer, "facts": facts(run)}, [columns, *more]


def facts(run: Run) -> list[tuple[str, str]]:
    metrics, overlap = run.metrics(TTFT_LIMIT_S, TPOT_LIMIT_S), run.overlap()
    none = "–" if overlap.transfer_s else "nothing copied"
    hidden, wall = (none if share is None else f"{share:.0%}" for share in (overlap.share, overlap.wall))
    ends = ", ".join(f"{count} {reason}" for reason, count in metrics.finished.items() if reason in NO_ANSWER)
    return [
        *([("requests without an answer", ends)] if ends else []),
        ("TTFT, half and 99 % of the requests within", _half_and_most(metrics.ttft_s)),
        ("second-token gap, likewise", _half_and_most(metrics.second_token_gap_s)),
        ("TPOT, likewise", _half_and_most(metrics.tpot_s)),
        ("new tokens a second", f"{metrics.tokens_per_s:.0f}"),
        (f"requests within TTFT {TTFT_LIMIT_S:g} s and TPOT {milliseconds(TPOT_LIMIT_S)}", f"{metrics.attainment:.0%}"),
        ("H, share of the copying that hides behind prefill", hidden),
        ("W, share of the copying time in which prefill computes", wall),
        ("E, copying left after tokens 1, all requests", milliseconds(overlap.exposed_s)),
        *((f"{name} busy", f"{metrics.busy[place]:.0%}") for place, name in row_names(run.timeline).items()),
    ]


def _half_and_most(found: Percentiles) -> str:
    if found.p50 is None or found.p99 is None:
        return "none"
    return f"{milliseconds(found.p50)}; {milliseconds(found.p99)}"
