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

    Tokens count in thousands, so that the three terms are of one size. Two exponential means correct it: all takes
    `beside` times as long while another worker computes, with the same memory or on the same GPU, and one row takes
    `single` times what the line through more rows says, since a product of matrices costs more than one with a vector.
    """

    FORGET, DOUBT = 0.98, 10_000.0  # the variance that forgetting adds is bounded by DOUBT
    RECENT, MOST = 0.1, 4.0  # of a mean: what the last one counts, and what it is at most

    def __init__(self) -> None:
        self.weights = [0.0, 0.0, 0.0]
        self.covariance = [[self.DOUBT if i == j else 0.0 for j in range(3)] for i in range(3)]
        self.seen = 0
        self.beside = self.single = 1.0

    def observe(self, rows: int, tokens: int, seconds: float, beside: bool = False) -> None:
        """Written out for three weights: it runs at every step. `beside`: another worker computed meanwhile."""
        expected = self.predict(rows, tokens, beside)
        if (beside or rows == 1) and self.seen and expected > 0:
            change = self.RECENT * (seconds / expected - 1)
            if beside:
                self.beside = min(self.MOST, max(1.0, self.beside * (1 + change)))
            else:
                self.single = min(self.MOST, self.single * (1 + change))
            return
        r, t = float(rows), tokens / 1000
        (a, b, c), (_, d, e), (_, _, f) = self.covariance  # symmetric
        forget = self.FORGET if a + d + f < 3 * self.DOUBT else 1.0
        x, y, z = a + b * r + c * t, b + d * r + e * t, c + e * r + f * t  # covariance times (1, r, t)
        scale = forget + x + r * y + t * z
        gain = (seconds - expected) / scale
        fixed, per_row, per_token = self.weights
        self.weights = [fixed + x * gain, per_row + y * gain, per_token + z * gain]
        b, c, e = (b - x * y / scale) / forget, (c - x * z / scale) / forget, (e - y * z / scale) / forget
        a, d, f = (a - x * x / scale) / forget, (d - y * y / scale) / forget, (f - z * z / scale) / forget
        self.covariance = [[a, b, c], [b, d, e], [c, e, f]]
        self.seen += 1

    def predict(self, rows: int, tokens: int, beside: bool = False) -> float:
        fixed, per_row, per_token = self.weights
        seconds = fixed + per_row * rows + per_token * tokens / 1000
        return seconds * (self.beside if beside else 1.0) * (self.single if rows == 1 else 1.0)


class Composer:
    """Adaptive composition: the rows of a step, and the tokens of a mixed pass, that keep the gaps under a target.

    The rule: as many as keep `late` × the model's time within the target. `late` settles where one gap in a hundred is
    over the target, by stochastic approximation (Robbins and Monro, 1951): after each step it moves by
    GAIN × (100 × the share of its gaps over the target − 1), from FIRST on, within 1 and MOST. It falls only while the
    target holds somebody back, so a quiet hour teaches nothing about a busy one. A request's second token has the
    longest gap: its K/V travel, and the step of the others has to end first. (Sarathi-Serve's budget is fixed.)
    """

    FIRST, GAIN, MOST = 1.2, 0.001, 3.0
    SECOND = 2.2  # steps of one row that a second token may take: the rest of one, its own, and a copy's tail

    def __init__(self, target_s: float, model: StepModel) -> None:
        self.target_s, self.model = target_s, model
        self.late = self.FIRST
        self.full = 1  # rows that were the most, when it was last asked

    def learn(self, rows: int, tokens_per_row: float, seconds: float, gaps_s: Sequence[float]) -> None:
        """The gaps of a step or mixed pass: `seconds` for most rows, and `gaps_s` for those with their second token.
        A second gap that steps of one row would have had is no reason for fewer rows."""
        least_s = max(self.target_s, self.SECOND * self.model.predict(1, round(tokens_per_row), beside=True))
        over = sum(gap > least_s for gap in gaps_s) + (rows - len(gaps_s)) * (seconds > self.target_s)
        if over or rows >= self.full:
            self.late = min(self.MOST, max(1.0, self.late + self.GAIN * (100 * over / max(1, rows) - 1)))

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
        self.full = rows
        return rows

    def budget(self, passes: StepModel, rows: int, most: int) -> int:
        """Tokens of prompts, up to `most`, beside which these rows have their token within the target."""
        fixed, per_row, per_token = passes.weights
        if per_token <= 0:
            return most
        left_s = self.target_s / self.late / passes.beside - fixed - per_row * rows
        return max(0, min(most, int(1000 * left_s / per_token)))
