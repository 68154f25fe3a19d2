"""Exercises and questions of notebooks/02_disaggregation.ipynb."""

from disagg.course.exercise import exercise
from disagg.course.questions import ask


def tokens_at(count: int, step: int, prefill: int, arrival: int) -> list[int]:
    now, waits, times = 0, True, []
    for _ in range(count):
        if waits and arrival <= now:
            now, waits = now + prefill, False
        now += step
        times.append(now)
    return times


def longest_prompt(gap_ms: int, step_ms: int, link_bytes_per_ms: int, token_bytes: int, block_size: int) -> int:
    blocks = (gap_ms - step_ms) * link_bytes_per_ms // (block_size * token_bytes)
    return max(0, blocks * block_size)


def one_step_late(count: int, step: int, prefill: int, arrival: int) -> list[int]:
    return tokens_at(count, step, prefill, arrival + 1)


def again_and_again(count: int, step: int, prefill: int, arrival: int) -> list[int]:
    now, times = 0, []
    for _ in range(count):
        now += step + (prefill if arrival <= now else 0)
        times.append(now)
    return times


def break_even_bandwidth(tokens: int, token_bytes: float, pass_s: float, token_s: float, running: int) -> float:
    prefill_s = pass_s + tokens * token_s
    return tokens * token_bytes / (running * prefill_s)


EXERCISES = [
    exercise(
        tokens_at,
        """
        **1. Who waits for whom?** (6 lines; a prediction). One device, and passes and steps take turns. A
        reader's steps run back to back from 0 on, `step` ms each, and each gives a token at its end. At
        `arrival` somebody sends a prompt whose prefill takes `prefill` ms. When do the reader's first `count`
        tokens come? Give a list of ms.

        ```text
        arrival at 70                 v
        device    |step 1|   |step 2|·····prefill·····|step 3|      step = 50, prefill = 120
        token at        50        100                      270
        ```

        Skeleton: `def tokens_at(count, step, prefill, arrival): ...`
        """,
        (
            "What runs at the moment at which the prompt arrives, and can it be stopped?",
            "Before each step: has the prompt arrived, and is it still to be computed? Then prefill goes first.",
            "Keep `now`. For each token: add prefill once, if arrival <= now; add step; write `now` down.",
        ),
        ((4, 50, 120, 70), (3, 50, 120, 500), (4, 66, 1029, 66), (3, 10, 25, 0), (5, 60, 300, 130)),
        one_step_late,
        "a prompt that is there when a step ends goes before the next one",
        lambda count, step, prefill, arrival: [step * n for n in range(1, count + 1)],
        "that is two devices: on one, nobody decodes while the prompt is computed",
        again_and_again,
        "the prompt is prefilled once: only one gap is long",
        lambda count, step, prefill, arrival: [
            step * n + (prefill if arrival < step * n else 0) for n in range(1, count + 1)
        ],
        "a step that runs is not stopped: it ends first, then the prompt is computed",
    ),
    exercise(
        longest_prompt,
        """
        **2. A promise** (2 lines; a design). A service hands off in bulk and promises a second-token gap of at
        most `gap_ms`. A decode step takes `step_ms`, the link carries `link_bytes_per_ms`, a token's K/V have
        `token_bytes`, and whole blocks of `block_size` tokens travel. How many tokens may a prompt have? (0, if
        not even one block is in time. All numbers are whole.)

        ```text
        token 1 |▒▒▒▒block▒▒▒▒|▒▒▒▒block▒▒▒▒|▒▒▒▒block▒▒▒▒|  step  | token 2
                |<----------------- gap_ms at most ---------------->|
        ```

        Skeleton: `def longest_prompt(gap_ms, step_ms, link_bytes_per_ms, token_bytes, block_size): ...`
        """,
        (
            "How much of the gap is left for the copy?",
            "In gap_ms - step_ms the link carries so many bytes. How many whole blocks are that?",
            "(gap_ms - step_ms) × link_bytes_per_ms // (block_size × token_bytes) blocks, of block_size tokens each.",
        ),
        (
            (500, 70, 10_000, 46_080, 16),
            (660, 70, 10_000, 46_080, 16),
            (60, 70, 10_000, 46_080, 16),
            (90, 70, 10_000, 46_080, 16),
            (80, 60, 1_024, 64, 32),
        ),
        lambda gap, step, link, token, size: longest_prompt(gap, 0, link, token, size),
        "token 2 exists one step after the K/V have arrived: the step is part of the gap",
        lambda gap, step, link, token, size: max(0, (gap - step) * link // token),
        "whole blocks travel: a prompt that begins a block sends all of it",
        lambda gap, step, link, token, size: max(0, (gap - step) * link // (size * token)),
        "those are blocks; the exercise asks for tokens",
        lambda gap, step, link, token, size: (gap - step) * link // (size * token) * size,
        "a prompt has no negative number of tokens: where a step alone is too long, give 0",
        lambda gap, step, link, token, size: max(0, -(-(gap - step) * link // (size * token)) * size),
        "the last block would arrive too late: round down",
    ),
    exercise(
        break_even_bandwidth,
        "The link speed at which a hand-off takes as long as the waits that it removes.",
        (
            "Who waits while the prompt is prefilled on a shared device, and for how long?",
            "One pass takes pass_s + tokens × token_s, and every running answer waits for all of it.",
            "The hand-off takes tokens × token_bytes / speed. Set that equal to running × the pass, and solve "
            "for speed.",
        ),
        ((256, 46_080, 0.005, 0.004, 1), (256, 46_080, 0.005, 0.004, 4), (16, 1_024, 0.1, 0.001, 2)),
        lambda t, b, p, s, r: t * b / (p + t * s),
        "every running answer waits for the whole pass, not only one",
        lambda t, b, p, s, r: t * b / (r * t * s),
        "a pass also takes `pass_s`, however many tokens it has",
        lambda t, b, p, s, r: r * t * b / (p + t * s),
        "more waiting answers make a slower link good enough: `running` belongs below the line",
        lambda t, b, p, s, r: r * (p + t * s) / (t * b),
        "a speed is bytes over seconds, not seconds over bytes",
        lambda t, b, p, s, r: t * b / (r * p + t * s),
        "each of the waits is a whole pass: its fixed part and its tokens, both times `running`",
        lambda t, b, p, s, r: b / (r * (p + s)),
        "a pass pays `pass_s` once, and only `token_s` for every token",
    ),
]

QUIZ = (
    ask(
        "b",
        "`split` sends all K/V after prefill. The prompt gets twice as long. What does that do to the second-token "
        "gap?",
        "nothing: how long the prompt is shows in the TTFT, and only there",
        "The TTFT doubles too, by the prefill. But K/V of twice as many tokens have to cross the link before token 2.",
        "the copy in it doubles, the step in it hardly changes",
        "The gap is copy plus one step. The bytes grow with the tokens; a step reads a few more of them.",
        "it doubles, copy and step",
        "A step reads all weights in any case; some more tokens of context are little beside that.",
    ),
    ask(
        "c",
        "In the crowd of the `guests`, why do answers on `split` not pause while a long prompt is computed?",
        "the prompt is cut into chunks",
        "It is the rival whose passes carry chunks and rows. Here the rows are somewhere else.",
        "decode has a higher priority on the device",
        "On one device a pass that runs is not stopped. Nobody has to be preferred if they never meet.",
        "it is computed on a device on which nobody decodes",
        "Steps go on below, prefill above. They meet once, at the hand-off.",
    ),
    ask(
        "a",
        "Sixteen short questions, long answers. Why does `two_colocated` beat `split` in nearly every column?",
        "nearly all work is decode, and `split` has one device for it",
        "Sixteen rows sit in every step of one device, while the other one is busy for 9 % of the time. The rival "
        "has eight on each.",
        "the hand-off of a short prompt takes longer than its prefill, sixteen times",
        "Short prompts have few K/V. In the picture *transfer* is a thin line.",
        "short prompts cannot be split",
        "They can, and they were. It only does not help them.",
    ),
    ask(
        "d",
        "When does splitting pay against two devices that each do everything?",
        "whenever the link is fast enough",
        "A fast link makes the hand-off cheap. It gives no work to a device that has none.",
        "when many prompts arrive at the same moment",
        "Then prompts queue for one device that prefills, where the rival has two.",
        "always: prefill and decode want different machines",
        "Here both machines are alike, and in two of three crowds the rival was better.",
        "when long prompts come among running answers, and both roles have work",
        "Then the rival's rows sit in long passes, and the split's do not; and neither of its devices is idle.",
    ),
    ask(
        "c",
        '"`split` gives twice the tokens a second of `colocated`, so splitting the phases doubles it." What is wrong?',
        "tokens a second cannot be compared between presets",
        "They can, on the same requests. But look at what was used for each.",
        "the hand-off is not in the figure, and it is what a user waits for",
        "It is: the time of the run has all of it in it.",
        "`split` has two devices: its rival has to have two as well",
        "Against `two_colocated` only the splitting differs. A second device alone may well bring the double.",
    ),
)
