"""How requests share a decode step: bins of similar length, the padding they save, a batch size that meets a target.

Notebook: notebooks/05_dynamic_batching.ipynb.
"""

from bisect import bisect_left
from dataclasses import dataclass, field

from disagg.plan.request import Record

Outputs = tuple[list[int], ...]  # `generated` of each row: a step appends its tokens to them


@dataclass
class Padding:
    """Slots that attention read for a batch: those that held a token, and all of them, padding included."""

    used_slots: int = 0
    padded_slots: int = 0

    def add(self, used: int, padded: int) -> None:
        self.used_slots += used
        self.padded_slots += padded

    @property
    def waste(self) -> float:
        """Share of the slots read that held nothing."""
        return 1 - self.used_slots / self.padded_slots if self.padded_slots else 0.0


def bin_of(context: int, bounds: tuple[int, ...]) -> int:
    """The bin of a context length in tokens; one past the last bound is the open bin."""
    return bisect_left(bounds, context)


def bin_end(context: int, bounds: tuple[int, ...]) -> int | None:
    """The first context length that leaves the bin; None in the open one."""
    index = bin_of(context, bounds)
    return bounds[index] + 1 if index < len(bounds) else None


@dataclass(eq=False)
class BatchRow:
    """A request's place in the decode batch: at step `joined` its context was `base` tokens, one more each step."""

    record: Record
    joined: int
    base: int
    last_step: int  # the step that gives its last token
    bin: int = 0

    def context(self, step: int) -> int:
        """Tokens in the cache before this step; the step writes one more."""
        return self.base + step - self.joined


@dataclass(eq=False)
class Group:
    """The rows of one bin, in the order in which they joined, with what attention will read for them."""

    rows: dict[int, BatchRow] = field(default_factory=dict)
    ids: tuple[int, ...] = ()
    outputs: Outputs = ()
    used: int = 0
    longest: int = 0

    def refresh(self, step: int) -> None:
        """Called when rows came or went, with the step about to be issued."""
        lengths = [row.context(step) + 1 for row in self.rows.values()]
        self.used, self.longest = sum(lengths), max(lengths, default=0)
        self.ids = tuple(self.rows)
        self.outputs = tuple(row.record.generated for row in self.rows.values())

    def advance(self) -> None:
        """One step later every row is one token longer."""
        self.used += len(self.ids)
        self.longest += 1


class StepModel:
    """Predicts a decode step's seconds from its rows and context tokens: recursive least squares with forgetting.

    step = fixed + per_row * rows + per_token * tokens, tokens in thousands so that the three terms are of one size.
    """

    FORGET, DOUBT = 0.98, 100.0  # old steps fade, but directions that no step explores don't grow doubtful for ever

    def __init__(self) -> None:
        self.weights = [0.0, 0.0, 0.0]
        self.covariance = [[self.DOUBT if i == j else 0.0 for j in range(3)] for i in range(3)]
        self.seen = 0

    def observe(self, rows: int, tokens: int, seconds: float) -> None:
        """Written out for three weights, because every step comes here."""
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

    def predict(self, rows: int, tokens: int) -> float:
        fixed, per_row, per_token = self.weights
        return fixed + per_row * rows + per_token * tokens / 1000


class Composer:
    """Adaptive composition: how many rows a step may have, so that it stays under the target.

    Two limits follow the model of measured steps. Prefill admits requests up to `limit`, which keeps a margin that
    grows when steps turn out slower than predicted, and at most doubles beyond the largest step seen. A request that
    has landed was admitted, and its reader waits for token 2: it joins up to `room`, the rows that the target itself
    allows. (Sarathi-Serve's token budget is fixed; this one follows the clock.)
    """

    AIM = 0.72  # share of the target that a predicted step may take; a joining request waits out a step of others

    def __init__(self, target_s: float) -> None:
        self.target_s = target_s
        self.model = StepModel()
        self.largest = 1  # rows of the largest step seen
        self.surprise = 0.0  # how much slower than predicted recent steps were, as a share

    def observe(self, rows: int, tokens: int, seconds: float) -> None:
        if self.model.seen > 4:
            slower = seconds / max(self.model.predict(rows, tokens), 1e-6) - 1
            self.surprise = max(0.95 * self.surprise, min(slower, 1.0) / 2)
        self.model.observe(rows, tokens, seconds)
        self.largest = max(self.largest, rows)

    def limit(self, tokens_per_row: float, most: int) -> int:
        """The largest number of rows, up to `most`, whose predicted step stays under the aim; at least one."""
        aim = self.AIM * self.target_s / (1 + max(0.0, self.surprise))
        return self._rows_within(aim, tokens_per_row, min(most, 2 * self.largest))

    def room(self, tokens_per_row: float, most: int) -> int:
        """As `limit`, under the whole target."""
        return self._rows_within(self.target_s, tokens_per_row, most)

    def _rows_within(self, seconds: float, tokens_per_row: float, most: int) -> int:
        """Steps of more rows take longer, so the answer is where the model's line crosses; rounding moves it by one."""

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
