"""Exercises of notebooks/08_bug_lab.ipynb: which bug was it, and what had to come before what?"""

from disagg.course.exercise import Exercise

CHAPTER = "08_bug_lab"
ASKED = (("bug",), ("before",), ("after",))


class Hidden(str):
    """An answer that a wrong guess does not print."""

    def __str__(self) -> str:
        return "another answer"

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return str(self)


def case_a(asked):
    return Hidden({"bug": "freed early", "before": "copies ended", "after": "blocks freed"}[asked])


def case_b(asked):
    return Hidden({"bug": "lost notice", "before": "failure told", "after": "waiting ends"}[asked])


def case_c(asked):
    return Hidden({"bug": "counted", "before": "all landed", "after": "decode starts"}[asked])


def case_d(asked):
    return Hidden({"bug": "two-sided", "before": "blocks given up", "after": "blocks waited for"}[asked])


def case_e(asked):
    return Hidden({"bug": "event first", "before": "copy enqueued", "after": "event recorded"}[asked])


def case_f(asked):
    return Hidden({"bug": "last block", "before": "last block sent", "after": "hand-off whole"}[asked])


def says(bug: str, before: str, after: str):
    """A guess, as a function like the learner's."""
    return lambda asked: {"bug": bug, "before": before, "after": after}[asked]


def case(letter: str, answer, hint: str, *wrong) -> Exercise:
    task = f"Case {letter.upper()}: the bug, and the two moments whose order was not kept."
    return Exercise(f"case_{letter}", CHAPTER, task, 1, answer, ASKED, wrong, hint)


def turned(bug: str, before: str, after: str, words: str):
    """The right bug with its edge the other way round."""
    return says(bug, after, before), words


EXERCISES = [
    case(
        "a", case_a,
        "Compare, for request 0, when its blocks were free and until when it was copied.",
        turned(
            "freed early", "copies ended", "blocks freed",
            "the bug is found; you named the moments as they happened, and the edge says how they should have",
        ),
        (
            says("ends twice", "step ended", "blocks freed"),
            "near: but no decode step had begun when request 0 was cancelled; what else touched its blocks?",
        ),
        (
            says("partial", "all landed", "decode starts"),
            "nobody decoded request 0; the harm was done to request 1, whose blocks are they?",
        ),
    ),
    case(
        "b", case_b,
        "A copy failed early. Who knew, and what did request 0 wait for in all that time?",
        turned(
            "lost notice", "failure told", "waiting ends",
            "the bug is found; but its waiting must not end before somebody tells it why",
        ),
        (
            says("two-sided", "blocks given up", "blocks waited for"),
            "request 1 went through, so no memory was short; only one request waited",
        ),
        (
            says("partial", "all landed", "decode starts"),
            "the failed copy was not taken for a landed one: decode never started for request 0",
        ),
    ),
    case(
        "c", case_c,
        "When did the first step begin, and when did the last piece land? What was told twice?",
        turned(
            "counted", "all landed", "decode starts",
            "the bug is found; you named the moments as they happened, and the edge says how they should have",
        ),
        (
            says("partial", "all landed", "decode starts"),
            "the edge is right; but no copy failed here: 16 of 16 pieces came, and one was told twice",
        ),
        (
            says("last block", "last block sent", "hand-off whole"),
            "nothing was left behind: all 16 pieces were copied, the last ones too late",
        ),
    ),
    case(
        "d", case_d,
        "Who holds blocks of the prefill device and wants those of decode? And who the other way round?",
        turned(
            "two-sided", "blocks given up", "blocks waited for",
            "the bug is found; waiting first and giving up after is just what they all did",
        ),
        (
            says("lost notice", "failure told", "waiting ends"),
            "no copy failed, and no notice is missing: each of them waits for blocks that another one holds",
        ),
        (
            says("freed early", "copies ended", "blocks freed"),
            "blocks were given back too rarely here, not too early: six requests stand still",
        ),
    ),
    case(
        "e", case_e,
        "The event was over, and the bytes were not there. Where in the stream does the event stand?",
        turned(
            "event first", "copy enqueued", "event recorded",
            "the bug is found; an event covers what is in the stream before it, so which one goes first?",
        ),
        (
            says("unordered", "bytes received", "stream goes on"),
            "near: but the copy and its event are on one stream here, and a stream keeps its order",
        ),
        (
            says("counted", "all landed", "decode starts"),
            "each layer was told once; the notice itself came before its bytes",
        ),
    ),
    case(
        "f", case_f,
        "100 tokens are in 7 blocks of 16. How many pieces of four layers is that, and how many were copied?",
        turned(
            "last block", "last block sent", "hand-off whole",
            "the bug is found; the hand-off was called whole before the rest was sent, so turn the edge round",
        ),
        (
            says("partial", "all landed", "decode starts"),
            "no copy failed: four pieces, one of each layer, were never sent at all",
        ),
        (
            says("counted", "all landed", "decode starts"),
            "no notice came twice; 24 pieces were due by what the sender said, and 24 came",
        ),
    ),
]  # fmt: skip
