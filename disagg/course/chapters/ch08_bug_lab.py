"""Exercises and questions of notebooks/08_bug_lab.ipynb: which bug was it, and what had to come before what?"""

from collections.abc import Callable

from disagg.course.buglab.bugs import bugs
from disagg.course.buglab.mysteries import case_of
from disagg.course.exercise import Exercise, exercise
from disagg.course.questions import ask

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


def case(letter: str, hints: tuple[str, ...], turned: str, *wrong: str | Callable) -> Exercise:
    """`turned` are the words for the right bug with its edge turned round; `wrong` has other bugs and their words."""
    bug = case_of(letter)
    right = says(bug)

    def answer(asked: str) -> Hidden:
        return Hidden(right(asked))

    answer.__name__ = f"case_{letter}"
    mistakes = [says(words) if isinstance(words, str) and words in bugs() else words for words in wrong]
    task = f"Case {letter.upper()}: the bug, and the two moments whose order was not kept."
    return exercise(answer, task, hints, ASKED, says(bug, turned=True), turned, *mistakes)


_AS_THEY_HAPPENED = "the bug is found; you named the moments as they happened, and the edge says how they should have"

EXERCISES = [
    case(
        "a",
        (
            "Which line of the receipt is longer than it should be, and whose copy is still on the link then?",
            "Compare, for request 0, when its blocks were free and until when it was copied.",
            "Request 1 got blocks that a copy still read: the copy's end had to come before they were free.",
        ),
        _AS_THEY_HAPPENED,
        "ends twice",
        "near: but no decode step had begun when request 0 was cancelled; what else touched its blocks?",
        "partial",
        "nobody decoded request 0; the harm was done to request 1, whose blocks are they?",
    ),
    case(
        "b",
        (
            "Look for the long line of the receipt, in which nobody works.",
            "A copy failed early. Who knew, and what did request 0 wait for in all that time?",
            "The failure stood in a log only. What has to happen before whoever waits for that copy may stop waiting?",
        ),
        "the bug is found; but its waiting must not end before somebody tells it why",
        "two-sided",
        "request 1 went through, so no memory was short; only one request waited",
        "partial",
        "the failed copy was not taken for a landed one: decode never started for request 0",
    ),
    case(
        "c",
        (
            "One thing was told twice. Should that change anything?",
            "When did the first step begin, and when did the last piece land?",
            "Whoever adds one for each notice reaches 16 with 15 pieces. What has to be complete before decode starts?",
        ),
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
        (
            "Draw an arrow from each request to the one that holds what it waits for.",
            "Who holds blocks of the prefill device and wants those of decode? And who the other way round?",
            "A request that is to be computed again should hold nothing meanwhile: what comes before what?",
        ),
        "the bug is found; waiting first and giving up after is just what they all did",
        "lost notice",
        "no copy failed, and no notice is missing: each of them waits for blocks that another one holds",
        "freed early",
        "blocks were given back too rarely here, not too early: six requests stand still",
    ),
    case(
        "e",
        (
            "An event is over when what was put into the stream before it is over.",
            "The event was over, and the bytes were not there. Where in the stream does the event stand?",
            "It was recorded before the copy was put in. Which of the two has to be in the stream first?",
        ),
        "the bug is found; an event covers what is in the stream before it, so which one goes first?",
        "partial",
        "near: but no copy failed here; each was over before it had begun, as far as its event says",
        "counted",
        "each layer was told once; the notice itself came before its bytes",
    ),
    case(
        "f",
        (
            "Divide the prompt into blocks, and look at the last one.",
            "100 tokens are in 7 blocks of 16. How many pieces of four layers is that, and how many were copied?",
            "Four pieces were never sent: those of the block that is not full. When may a hand-off count as whole?",
        ),
        "the bug is found; the hand-off was called whole before the rest was sent, so turn the edge round",
        near("last block", "all landed", "decode starts"),
        "that edge was broken as well, in the end; the case asks where it began: what did the sender leave out?",
        "partial",
        "no copy failed: four pieces, one of each layer, were never sent at all",
        "counted",
        "no notice came twice; 24 pieces were due by what the sender said, and 24 came",
    ),
]

QUIZ = (
    ask(
        "c",
        "A user presses Stop while K/V of the request are on the link. When may its blocks go to somebody else?",
        "at once: nobody needs the answer any more",
        "Nobody needs it, but a copy still reads or writes the blocks. The next owner's K/V would be mixed with it.",
        "when the user has been told that the answer is over for good",
        "Telling is good, and has nothing to do with what touches the blocks.",
        "when the last copy that reads or writes them has ended",
        "Ending is not freeing. Until then the blocks are kept back: quarantined.",
    ),
    ask(
        "b",
        "16 pieces are due, and the network tells one of them twice. How does decode know that all have come?",
        "it counts to 17, to be sure",
        "Which piece comes twice, and how often, is not known before. A count can always be wrong.",
        "it keeps which pieces came, and compares with those due",
        "In a set a second notice of the same piece changes nothing. A count of 16 may be 15 pieces.",
        "it waits some time after the 16th notice",
        "Time is no order: on a slow day the missing piece comes after it.",
    ),
    ask(
        "a",
        "An event is recorded, then the copy is put on the stream. Why does every test on a laptop pass?",
        "there everything is done at once, so the copy happens to be over",
        "The edge is missing, but nothing is late. On a GPU the event is over while the copy still waits.",
        "there are no events on a laptop",
        "The code runs there as well, with events that are over at once. That is what hides the bug.",
        "the checksums find the copy that is missing, and it is made once more",
        "They compare, and can only refuse. And they too see what is there at once on a laptop.",
    ),
    ask(
        "d",
        "Six requests wait for each other's blocks. Which change ends that for good?",
        "a longer time until they give up",
        "A circle of waits does not end by itself. They would only wait longer.",
        "more blocks",
        "Then it takes more requests, or longer answers, and happens again, under load.",
        "the oldest one goes first, whatever the younger ones are doing",
        "It waits for blocks that a younger one holds, first in the queue or not.",
        "who has to wait for other blocks gives up its own first",
        "Then nobody holds what another waits for, and there is no circle.",
    ),
    ask(
        "b",
        '"All tests are green, and no request has failed in a month. So no order is broken." What is wrong?',
        "a month is too short",
        "A year would show as little, if the error shows in no error.",
        "most such bugs show no error: an answer just becomes nonsense",
        "Seven of the ten in this chapter do so. Somebody has to keep books of their own and compare.",
        "nothing: a broken order ends in an error sooner or later, and there was none",
        "It ends in whatever bytes are there. A model makes some words of any of them.",
    ),
)
