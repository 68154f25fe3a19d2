"""How requests share a decode step: bins of similar length, padding, and a batch size that meets a target.

Notebook: notebooks/05_dynamic_batching.ipynb.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from disagg.plan.request import Record

Outputs = tuple[list[int], ...]  # `generated` of each row: a step appends its tokens to them


@dataclass
class Padding:
    """Slots that attention read: those of tokens, and those with padding."""

    used_slots: int = 0
    padded_slots: int = 0

    def add(self, used: int, padded: int) -> None:
        self.used_slots += used
        self.padded_slots += padded

    @property
    def waste(self) -> float:
        """The share of padding."""
        return 1 - self.used_slots / self.padded_slots if self.padded_slots else 0.0


def bin_of(context: int, bounds: tuple[int, ...]) -> int:
    """The bin of a context length in tokens; the one after the last bound is open."""
    return bisect_left(bounds, context)


def bin_end(context: int, bounds: tuple[int, ...]) -> int | None:
    """The first context length that leaves the bin; None in the open one."""
    index = bin_of(context, bounds)
    return bounds[index] + 1 if index < len(bounds) else None


@dataclass(eq=False)
class BinRow:
    """A request in the decode batch. At step `joined` its context was `base` tokens; each step adds one."""

    record: Record
    joined: int
    base: int
    last_step: int  # the step that gives its last token
    bin: int = 0

    def context(self, step: int) -> int:
        """Tokens in its cache before this step."""
        return self.base + step - self.joined


@dataclass(eq=False)
class Group:
    """The rows of one bin, in the order in which they joined, and the slots that attention reads for them."""

    rows: dict[int, BinRow] = field(default_factory=dict)
    ids: tuple[int, ...] = ()
    outputs: Outputs = ()
    used: int = 0
    longest: int = 0

    def refresh(self, step: int) -> None:
        """Follows a change of rows before this step."""
        lengths = [row.context(step) + 1 for row in self.rows.values()]
        self.used, self.longest = sum(lengths), max(lengths, default=0)
        self.ids = tuple(self.rows)
        self.outputs = tuple(row.record.generated for row in self.rows.values())

    def advance(self) -> None:
        """After a step every row is one token longer."""
        self.used += len(self.ids)
        self.longest += 1


class StepModel:
    """step = fixed + per_row * rows + per_token * tokens in seconds, by recursive least squares with forgetting.

    Tokens count in thousands, so that the three terms are of one size. Beside a worker that computes meanwhile, on the
    same GPU or with the same memory, all of it takes `beside` times as long, an exponential mean.
    """

    FORGET, DOUBT = 0.98, 10_000.0  # the variance that forgetting adds is bounded by DOUBT
    RECENT, MOST = 0.1, 4.0

    def __init__(self) -> None:
        self.weights = [0.0, 0.0, 0.0]
        self.covariance = [[self.DOUBT if i == j else 0.0 for j in range(3)] for i in range(3)]
        self.seen = 0
        self.beside = 1.0

    def observe(self, rows: int, tokens: int, seconds: float, beside: bool = False) -> None:
        """Written out for three weights: it runs at every step. `beside`: another worker computed meanwhile."""
        if beside and self.seen and (alone := self.predict(rows, tokens)) > 0:
            self.beside += self.RECENT * (min(self.MOST, max(1.0, seconds / alone)) - self.beside)
            return
        r, t = float(rows), tokens / 1000
        (a, b, c), (_, d, e), (_, _, f) = self.covariance  # symmetric
        forget = self.FORGET if a + d + f < 3 * self.DOUBT else 1.0
        x, y, z = a + b * r + c * t, b + d * r + e * t, c + e * r + f * t  # covariance times (1, r, t)
        scale = forget + x + r * y + t * z
        gain = (seconds - self.predict(rows, tokens)) / scale
        fixed, per_row, per_token = self.weights
        self.weights = [fixed + x * gain, per_row + y * gain, per_token + z * gain]
        b, c, e = (b - x * y / scale) / forget, (c - x * z / scale) / forget, (e - y * z / scale) / forget
        a, d, f = (a - x * x / scale) / forget, (d - y * y / scale) / forget, (f - z * z / scale) / forget
        self.covariance = [[a, b, c], [b, d, e], [c, e, f]]
        self.seen += 1

    def predict(self, rows: int, tokens: int, beside: bool = False) -> float:
        fixed, per_row, per_token = self.weights
        alone = fixed + per_row * rows + per_token * tokens / 1000
        return alone * self.beside if beside else alone


class Composer:
    """Adaptive composition: the rows of a step, and the tokens of a mixed pass, that keep the gaps under a target.

    The rule: as many as keep `late` × the model's time within the target. `late` follows the 99th percentile of gaps
    over the model's time of their step, by stochastic approximation (Robbins and Monro, 1951): after each step it moves
    by GAIN × (100 × the share of its gaps that were longer − 1), within 1 and MOST. A request's second token has the
    longest gap: its K/V travel, and the step of the others has to end first. (Sarathi-Serve's budget is fixed.)
    """

    GAIN, MOST = 0.001, 3.0
    SLACK = 1.01  # a gap that is longer by less is the model's rounding

    def __init__(self, target_s: float, model: StepModel) -> None:
        self.target_s, self.model = target_s, model
        self.late = 1.0

    def learn(self, by: StepModel, predicted_s: float, rows: int, seconds: float, gaps_s: Sequence[float]) -> None:
        """How late the gaps of a step or mixed pass were, by a model that has seen a few: `seconds` for most rows, and
        `gaps_s` for those that had their second token in it."""
        if by.seen > 2 and predicted_s > 0:
            gaps = [*gaps_s, *[seconds] * (rows - len(gaps_s))]
            share = sum(gap > self.SLACK * self.late * predicted_s for gap in gaps) / max(1, len(gaps))
            self.late = min(self.MOST, max(1.0, self.late + self.GAIN * (100 * share - 1)))

    def room(self, tokens_per_row: float, most: int) -> int:
        """Rows, from 1 to `most`, whose step stays within the target, beside a prefill pass too: by the model's line,
        corrected for rounding."""
        seconds = self.target_s / self.late / self.model.beside

        def fits(rows: int) -> bool:
            return self.model.predict(rows, round(rows * tokens_per_row)) <= seconds

        fixed, per_row, per_token = self.model.weights
        slope = per_row + per_token * tokens_per_row / 1000
        if slope <= 0:
            return max(1, most) if fits(2) else 1
        rows = max(1, min(most, int((seconds - fixed) / slope)))
        while rows < most and fits(rows + 1):
            rows += 1
        while rows > 1 and not fits(rows):
            rows -= 1
        return rows

    def budget(self, passes: StepModel, rows: int, most: int) -> int:
        """Tokens of prompts, up to `most`, beside which these rows have their token within the target."""
        fixed, per_row, per_token = passes.weights
        if per_token <= 0:
            return most
        return max(0, min(most, int(1000 * (self.target_s / self.late / passes.beside - fixed - per_row * rows) / per_token)))
