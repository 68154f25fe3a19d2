"""Exercises of notebooks/08_bug_lab.ipynb: which bug was it, and what had to come before what?"""

from collections.abc import Callable

from disagg.course.buglab.bugs import bugs
from disagg.course.buglab.mysteries import case_of
from disagg.course.exercise import Exercise, exercise

ASKED = (("bug",), ("before",), ("after",))


class Hidden(str):
    """An answer that a wrong guess does not print."""

    def __str__(self) -> str:
        return "another answer"

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return str(self)


def says(bug: str, turned: bool = False) -> Callable[[str], str]:
    """A bug with its edge, or with the edge the other way round, as a function like the learner's."""
    edge = (bugs()[bug].before, bugs()[bug].after)[:: -1 if turned else 1]
    return lambda asked: dict(zip(("bug", "before", "after"), (bug, *edge), strict=True))[asked]


def near(bug: str, before: str, after: str) -> Callable[[str], str]:
    """The bug with another edge, which was broken as well."""
    return lambda asked: {"bug": bug, "before": before, "after": after}[asked]


def case(letter: str, hint: str, turned: str, *wrong: str | Callable) -> Exercise:
    """`turned` is the hint for the right bug with its edge the other way round; `wrong` has other bugs and hints."""
    bug = case_of(letter)
    right = says(bug)

    def answer(asked: str) -> Hidden:
        return Hidden(right(asked))

    answer.__name__ = f"case_{letter}"
    mistakes = [says(words) if isinstance(words, str) and words in bugs() else words for words in wrong]
    task = f"Case {letter.upper()}: the bug, and the two moments whose order was not kept."
    return exercise(answer, task, hint, ASKED, says(bug, turned=True), turned, *mistakes)


_AS_THEY_HAPPENED = "the bug is found; you named the moments as they happened, and the edge says how they should have"

EXERCISES = [
    case(
        "a",
        "Compare, for request 0, when its blocks were free and until when it was copied.",
        _AS_THEY_HAPPENED,
        "ends twice",
        "near: but no decode step had begun when request 0 was cancelled; what else touched its blocks?",
        "partial",
        "nobody decoded request 0; the harm was done to request 1, whose blocks are they?",
    ),
    case(
        "b",
        "A copy failed early. Who knew, and what did request 0 wait for in all that time?",
        "the bug is found; but its waiting must not end before somebody tells it why",
        "two-sided",
        "request 1 went through, so no memory was short; only one request waited",
        "partial",
        "the failed copy was not taken for a landed one: decode never started for request 0",
    ),
    case(
        "c",
        "When did the first step begin, and when did the last piece land? What was told twice?",
        _AS_THEY_HAPPENED,
        "partial",
        "the edge is right; but no copy failed here: 16 of 16 pieces came, and one was told twice",
        near("counted", "all landed", "hand-off whole"),
        "that edge was broken as well, on the way; the case asks for its end: what did decode do too early?",
        "last block",
        "nothing was left behind: all 16 pieces were copied, the last ones too late",
    ),
    case(
        "d",
        "Who holds blocks of the prefill device and wants those of decode? And who the other way round?",
        "the bug is found; waiting first and giving up after is just what they all did",
        "lost notice",
        "no copy failed, and no notice is missing: each of them waits for blocks that another one holds",
        "freed early",
        "blocks were given back too rarely here, not too early: six requests stand still",
    ),
    case(
        "e",
        "The event was over, and the bytes were not there. Where in the stream does the event stand?",
        "the bug is found; an event covers what is in the stream before it, so which one goes first?",
        "partial",
        "near: but no copy failed here; each was over before it had begun, as far as its event says",
        "counted",
        "each layer was told once; the notice itself came before its bytes",
    ),
    case(
        "f",
        "100 tokens are in 7 blocks of 16. How many pieces of four layers is that, and how many were copied?",
        "the bug is found; the hand-off was called whole before the rest was sent, so turn the edge round",
        near("last block", "all landed", "decode starts"),
        "that edge was broken as well, in the end; the case asks where it began: what did the sender leave out?",
        "partial",
        "no copy failed: four pieces, one of each layer, were never sent at all",
        "counted",
        "no notice came twice; 24 pieces were due by what the sender said, and 24 came",
    ),
]
