"""Exercises of notebooks/05_dynamic_batching.ipynb."""

from disagg.course.exercise import exercise


def step_waste(bins: list[list[int]]) -> int:
    return sum(len(lengths) * max(lengths) - sum(lengths) for lengths in bins)


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


def waste_in_one_bin(bins: list[list[int]]) -> int:
    rows = [length for lengths in bins for length in lengths]
    return len(rows) * max(rows) - sum(rows)


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
        step_waste,
        "Slots that attention reads for nothing in one step; bins is a list of lists of lengths.",
        "Each bin is read as rows × its longest; what its rows do not fill is padding.",
        (([[20, 24, 30, 90, 110, 400]],), ([[20, 24, 30], [90, 110], [400]],), ([[5]],), ([[3, 5], [8, 8, 9]],)),
        waste_in_one_bin,
        "that pads each row to the longest of the whole step; a bin has a longest of its own",
        lambda bins: sum(len(b) * max(b) for b in bins),
        "those are all slots read; take off those with a token",
        lambda bins: sum(max(b) - min(b) for b in bins),
        "every row of a bin is padded to the longest, not only the shortest row",
        lambda bins: step_waste(bins) / sum(len(b) * max(b) for b in bins),
        "that is the share; the exercise asks how many slots",
    ),
    exercise(
        steps_saved,
        "Steps that are saved when a finished answer leaves at once and the next in line takes its place.",
        "Static: add up the longest of each batch. At once: keep the step at which each place is free again.",
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
        "late × (fixed + rows × (per_row + per_slot × length)) is at most the target. Times are whole microseconds.",
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
