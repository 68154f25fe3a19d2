"""Exercises and questions of notebooks/05_dynamic_batching.ipynb."""

from disagg.course.exercise import exercise
from disagg.course.questions import ask


def best_bound(lengths: list[int]) -> int:
    return min(sorted(lengths), key=lambda bound: slots_read(lengths, bound))


def slots_read(lengths: list[int], bound: int) -> int:
    bins = [n for n in lengths if n <= bound], [n for n in lengths if n > bound]
    return sum(len(rows) * max(rows) for rows in bins if rows)


def even_halves(lengths: list[int]) -> int:
    return sorted(lengths)[(len(lengths) - 1) // 2]


def below_the_longest(lengths: list[int]) -> int:
    return sorted(lengths)[-2]


def least_share_in_first(lengths: list[int]) -> int:
    return min(sorted(lengths), key=lambda bound: slots_read([n for n in lengths if n <= bound], bound))


def steps_saved(steps: list[int], places: int) -> int:
    static = sum(max(steps[i : i + places]) for i in range(0, len(steps), places))
    ends = [0] * places
    for more in steps:
        ends[ends.index(min(ends))] += more
    return static - max(ends)


def rows_allowed(
    target: int, late: float, fixed: float, per_row: float, per_slot: float, length: int, most: int
) -> int:
    rows = int((target / late - fixed) // (per_row + per_slot * length))
    return max(1, min(rows, most))


def places_saved(steps: list[int], places: int) -> int:
    groups = [steps[i : i + places] for i in range(0, len(steps), places)]
    return sum(len(group) * max(group) - sum(group) for group in groups)


def divided_evenly(steps: list[int], places: int) -> int:
    return sum(max(steps[i : i + places]) for i in range(0, len(steps), places)) - -(-sum(steps) // places)


def longest_first(steps: list[int], places: int) -> int:
    ends = [0] * places
    for more in sorted(steps, reverse=True):
        ends[ends.index(min(ends))] += more
    return sum(max(steps[i : i + places]) for i in range(0, len(steps), places)) - max(ends)


def taken_in_turn(steps: list[int], places: int) -> int:
    static = sum(max(steps[i : i + places]) for i in range(0, len(steps), places))
    return static - max(sum(steps[place::places]) for place in range(places))


EXERCISES = [
    exercise(
        best_bound,
        """
        **1. Where to put the bound** (3 or 4 lines; a design). You may have two bins: rows of up to `bound`
        tokens, and the longer ones. Each bin is read as rows × its longest. Which of the `lengths` is the best
        bound, so that as few slots as possible are read? If several are equally good, give the smallest.

        ```text
        bound = 3       ■■        ■■■        two bins: 2 × 3 + 1 × 8 = 14 slots
                        ■■■       ■■■■■■■■   bound = 2: 1 × 2 + 2 × 8 = 18
        ```

        Skeleton: `def best_bound(lengths): ...`
        """,
        (
            "You need no formula: there are only as many bounds to try as there are lengths.",
            "For one bound: part the lengths in two lists, and add up len(rows) × max(rows) of those that are "
            "not empty.",
            "min(sorted(lengths), key=that sum): it takes the first of equal ones.",
        ),
        (
            ([2, 3, 8],),
            ([20, 24, 30, 90, 110, 400],),
            ([10, 20, 90, 100, 100, 100],),
            ([7, 7, 7],),
            ([10, 20, 30, 40],),
            ([5, 50, 60, 70, 80, 90],),
        ),
        even_halves,
        "as many rows on both sides says nothing about their lengths",
        below_the_longest,
        "one long row alone is not always the most that can be saved",
        least_share_in_first,
        "that looks at the first bin only; the rows above the bound are padded to their own longest",
        lambda lengths: max(sorted(lengths), key=lambda bound: slots_read(lengths, bound)),
        "that reads as much as possible: look for the least",
        lambda lengths: min(slots_read(lengths, bound) for bound in lengths),
        "that is how many slots are read; the exercise asks for the bound",
    ),
    exercise(
        steps_saved,
        "Steps that are saved when a finished answer leaves at once and the next in line takes its place.",
        (
            "A place is free again when its answer has ended, whoever sits beside it.",
            "Static: the sum over groups of `places` answers of the longest. At once: keep for each place when "
            "it is free.",
            "For each answer in order: ends[ends.index(min(ends))] += its steps. The run is over at max(ends).",
        ),
        (([10, 2, 2, 2], 2), ([5, 5, 5, 5], 2), ([3, 30, 3, 3, 3, 20, 3, 3], 4), ([7, 1, 4, 9, 2], 3), ([6, 2, 9], 1)),
        places_saved,
        "those are places that held nobody; the exercise asks for steps",
        divided_evenly,
        "an answer cannot be cut up: it stays in one place, one step after the other",
        taken_in_turn,
        "the next in line takes the place that is free first, not the places in turn",
        lambda steps, places: steps_saved(sorted(steps), places),
        "do not sort: answers come in the order of the list, and nobody knows their length before",
        longest_first,
        "the longest does not come first: answers come in the order of the list",
    ),
    exercise(
        rows_allowed,
        "Rows of equal length that keep `late` × their step within the target: at least one, at most `most`.",
        (
            "How long may a step take, so that `late` times as long is still within the target?",
            "A step may take target / late. The fixed part goes off first, the rest is for rows.",
            "(target / late - fixed) // (per_row + per_slot × length), then no fewer than 1 and no more than `most`.",
        ),
        (
            (150_000, 1.0, 60_000, 6_000, 20, 100, 32),
            (150_000, 1.25, 60_000, 6_000, 20, 100, 32),
            (150_000, 1.0, 60_000, 6_000, 20, 1_000, 32),
            (500_000, 1.25, 60_000, 6_000, 20, 100, 32),
            (50_000, 1.0, 60_000, 6_000, 20, 100, 32),
            (135_000, 1.25, 60_000, 6_000, 20, 100, 32),
        ),
        lambda target, late, fixed, row, slot, length, most: rows_allowed(target, 1, fixed, row, slot, length, most),
        "that fills the whole target; `late` times the step has to be within it",
        lambda target, late, fixed, row, slot, length, most: rows_allowed(
            target, 1, late * fixed, row, slot, length, most
        ),
        "late gaps are longer than the whole step: `late` times the rows' part too",
        lambda target, late, fixed, row, slot, length, most: min(
            (target / late - fixed) // (row + slot * length), most
        ),
        "a step with no row serves nobody: at least one, however small the target",
        lambda target, late, fixed, row, slot, length, most: max(1, (target / late - fixed) // (row + slot * length)),
        "a batch has no more than `most` places",
        lambda target, late, fixed, row, slot, length, most: (target / late - fixed) // (row + slot * length),
        "that is what the target allows; at least one row runs all the same, and never more than `most`",
        lambda target, late, fixed, row, slot, length, most: max(
            1, min((target / late - fixed) / (row + slot * length), most)
        ),
        "a part of a row cannot run: round down to whole rows",
        lambda target, late, fixed, row, slot, length, most: rows_allowed(target, late, 0, row, slot, length, most),
        "the fixed part is paid first, before any row",
        lambda target, late, fixed, row, slot, length, most: rows_allowed(target, late, fixed, row, 0, length, most),
        "each row also reads `length` slots, and they cost `per_slot` each",
        lambda target, late, fixed, row, slot, length, most: rows_allowed(target, late, fixed, row, slot, 1, most),
        "a row reads `length` slots in every step, not one",
    ),
]

QUIZ = (
    ask(
        "b",
        'With 8 bins 41 % of the slots read are padding. "So 8 bins are bad." What is wrong with it?',
        "41 % must be a mistake: bins make padding less",
        "It is no mistake. The share is of what is read, and that has become small.",
        "the share is of little: far fewer slots are read in all",
        "Most of the padding is gone. What is left is a large part of a small number, and each further bin costs a "
        "call of attention.",
        "padding costs nothing, since the slots that are padding hold no token",
        "Attention reads such slots like all others. What helps is that there are far fewer of them.",
    ),
    ask(
        "c",
        "Target 150 ms, `late` = 1.2. A step of 8 rows takes 124 ms, one of 9 rows 132 ms. How many rows, and what "
        "does `late` do?",
        "9 rows, as 132 ms are within 150 ms; `late` has no part in that",
        "The rule is that `late` × the step stays within the target, and 1.2 × 132 is 158 ms.",
        "8 rows; it falls when gaps come late, so that the next step may have more rows",
        "Late gaps mean that too many rows joined. `late` has to go the other way.",
        "8 rows; it rises if more than one gap in a hundred is over the target",
        "1.2 × 124 is 149 ms. `late` goes up with late gaps and slowly down after full steps without one, until "
        "one gap in a hundred is late.",
    ),
    ask(
        "b",
        "A rush of requests gets a target for its gaps. Gaps become short. Where did the waiting go?",
        "it is gone: shorter steps are less work, and less work means less waiting",
        "Each step has fewer rows, so more steps are needed, and each reads all weights. There is no less work.",
        "to the front: requests wait for a place, so the TTFT is longer",
        "The receipts say *batch-slot*. Whoever is in the batch reads smoothly, the others wait for it; and fewer "
        "tokens come in all.",
        "to the link: K/V wait to be sent",
        "A target says how many rows may share a step. No copy gets longer by it.",
    ),
    ask(
        "a",
        "How does `conditional` decide whether a request stays on one device or is split?",
        "by an estimate of its own time and of what it takes from others, for each way",
        "It adds up queue, prefill, hand-off and decode of each way, and what the rows beside it would lose, and "
        "takes the least.",
        "it keeps prompts below a fixed length, and splits longer ones",
        "Length is in the estimate, but so are queues, the link, and who decodes where. The same prompt may go "
        "either way.",
        "it splits as long as the link is idle",
        "An idle link makes the hand-off cheap. Whether there is somebody to be spared by it is another matter.",
        "it keeps three of four requests, to balance the devices",
        "In this chapter ten of twelve stayed. That came out of the estimates of this load; another load gives "
        "another number.",
    ),
    ask(
        "c",
        "Passes and steps took turns, now passes are mixed. Which figure of this chapter's table gets worse?",
        "the tokens a second of all requests",
        "They rise: a mixed pass reads the weights once for a chunk and all rows.",
        "the p99 of the gaps",
        "It gets shorter: no row waits for a pass and then for a step as well.",
        "the second-token gap",
        "A fresh row sits at once in the pass of somebody else's prompt, and that is longer than a step.",
    ),
)
