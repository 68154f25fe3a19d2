"""Exercises and questions of notebooks/01_baseline.ipynb."""

import math

from disagg.course.exercise import exercise
from disagg.course.questions import ask


def computed_again(prompt: int, new: int) -> int:
    return sum(prompt + written - 1 for written in range(1, new))


def chunk_for(limit: int, tokens: int, fixed: int, per_token: int, rows: int, per_row: int) -> tuple[int, int] | None:
    chunk = min(tokens, (limit - fixed - rows * per_row) // per_token)
    return (chunk, -(-tokens // chunk)) if chunk > 0 else None


def unbounded_chunk(limit: int, tokens: int, fixed: int, token: int, rows: int, row: int) -> tuple[int, int] | None:
    chunk = (limit - fixed - rows * row) // token
    return (chunk, -(-tokens // chunk)) if chunk > 0 else None


def cut_short(limit: int, tokens: int, fixed: int, token: int, rows: int, row: int) -> tuple[int, int] | None:
    found = chunk_for(limit, tokens, fixed, token, rows, row)
    return found and (found[0], tokens // found[0])


def balanced_rows(
    context: float, flops_per_s: float, bytes_per_s: float, row_flops: float, weight_bytes: float, token_bytes: float
) -> int | None:
    compute_s = row_flops / flops_per_s
    read_s = token_bytes * context / bytes_per_s
    if compute_s <= read_s:
        return None
    return math.ceil(weight_bytes / bytes_per_s / (compute_s - read_s))


def _not_rounded(c: float, f: float, b: float, row: float, w: float, t: float) -> float | None:
    spare = row / f - t * c / b
    return None if spare <= 0 else w / b / spare


PAPER = (100e9, 10e9)  # FLOP/s and bytes/s
ROW = (268_959_744, 537_919_488, 46_080)  # FLOPs of a row, bytes of the weights, bytes of K/V a token


EXERCISES = [
    exercise(
        computed_again,
        """
        **1. Why K and V are kept** (1 line; a prediction). A prompt of `prompt` tokens gets an answer of `new`
        tokens. Suppose that nothing is kept: each new token then needs a pass over the whole text so far,
        instead of one over the newest token alone. Over how many tokens does the model pass in vain, in all?
        (Token 1 comes from prefill, which has to read the prompt in any case.)

        ```text
        prompt = 3          token 1     token 2     token 3
        nothing kept        ■■■         ■■■■        ■■■■■
        K and V kept        ■■■         ···■        ····■       · is what you count: 7
        ```

        Skeleton: `def computed_again(prompt, new): ...`
        """,
        (
            "Which pass is the same with K and V and without them?",
            "Token k is the successor of prompt + k - 1 tokens. All of them but the newest were computed before.",
            "Sum over k from 2 to new of prompt + k - 2: that is prompt + 0, prompt + 1, and so on, new - 1 of them.",
        ),
        ((3, 3), (3, 1), (113, 6), (10, 2), (256, 64)),
        lambda prompt, new: prompt * (new - 1),
        "the text grows: for token 3 the model also reads token 1 again",
        lambda prompt, new: sum(prompt + k for k in range(1, new)),
        "the newest token has to be computed in any case: it is not in vain",
        lambda prompt, new: sum(prompt + k for k in range(new)),
        "those are all tokens of all passes; take off what has to be computed in any case",
        lambda prompt, new: sum(prompt + k - 1 for k in range(new)),
        "token 1 comes from prefill, in one pass over the prompt, and nothing in that is in vain",
    ),
    exercise(
        chunk_for,
        """
        **2. Choose the chunk** (2 lines; a design). While `rows` rows decode, a prompt of `tokens` tokens
        arrives. In mixed passes a chunk and the rows go through together: a pass takes `fixed`, `per_token` for
        each token of the chunk and `per_row` for each row, all in whole µs. Readers were promised gaps of at
        most `limit`. What is the largest chunk that keeps it, and how many passes does the prompt then need?
        Give both as a pair, or `None` where not even a chunk of one token keeps it.

        ```text
                                          limit
        | fixed | rows | t | t | t | t | t |          a pass with a chunk of 5
        ```

        Skeleton: `def chunk_for(limit, tokens, fixed, per_token, rows, per_row): ...`
        """,
        (
            "What does a pass cost before the first token of a chunk is in it?",
            "(limit - fixed - rows × per_row) is left for the chunk. How many tokens is that, and may it be that many?",
            "chunk = min(tokens, what is left // per_token). The passes are tokens / chunk, rounded up.",
        ),
        (
            (300_000, 400, 5_000, 4_000, 3, 7_000),
            (2_000_000, 400, 5_000, 4_000, 3, 7_000),
            (28_000, 400, 5_000, 4_000, 3, 7_000),
            (90_000, 32, 5_000, 4_000, 3, 7_000),
            (69_000, 32, 5_000, 4_000, 0, 7_000),
        ),
        lambda limit, n, fixed, token, rows, row: chunk_for(limit, n, fixed, token, 0, 0),
        "the rows decode in the same pass, and each of them makes it longer",
        lambda limit, n, fixed, token, rows, row: chunk_for(limit, n, 0, token, rows, row),
        "every pass has a fixed price, before any token",
        unbounded_chunk,
        "a chunk can't have more tokens than the prompt",
        cut_short,
        "what is left after the whole chunks needs a pass too",
        lambda limit, n, fixed, token, rows, row: chunk_for(limit, n, fixed, token, 1, row),
        "each of the rows makes the pass longer, not one alone",
    ),
    exercise(
        balanced_rows,
        "Rows of equal context from which a decode step takes at least as long to compute as to read; None: never.",
        (
            "Which part of a step grows with its rows, and which is paid once?",
            "With B rows, computing takes B × row_flops / flops_per_s. Reading takes the weights once and B "
            "times a row's K/V.",
            "Each row that joins gains row_flops / flops_per_s - token_bytes × context / bytes_per_s. The "
            "weights' time over that, rounded up; where the gain is 0 or less, None.",
        ),
        (
            (0, 1000, 100, 50, 100, 2),
            (0, *PAPER, *ROW),
            (256, *PAPER, *ROW),
            (256, 50e9, 10e9, *ROW),
            (1000, *PAPER, *ROW),
        ),
        lambda c, f, b, row, w, t: math.ceil(w / b / (row / f)),
        "this leaves out the K/V, and every row that joins brings its own to read",
        lambda c, f, b, row, w, t: math.ceil((w + c * t) / b / (row / f)),
        "each row reads K/V of its own; only the weights are shared",
        _not_rounded,
        "rows are whole: round up, or the step is still short of work",
        lambda c, f, b, row, w, t: math.ceil(w / b / (row / f - t * c / b)),
        "where a row's K/V take longer to read than its FLOPs to compute, no batch is large enough: return None",
    ),
]

QUIZ = (
    ask(
        "c",
        "On the paper machine a step of 16 rows takes a third longer than a step of one. Why not 16 times as long?",
        "the 16 rows are computed one after the other, but each of them is faster",
        "They go through the model together. What is shared is what has to be read for them.",
        "the rows share their K/V",
        "Each row has a text of its own, and so its own K/V to read.",
        "the weights are read once for all rows, and reading is the limit",
        "Left of the ridge the time is that of the bytes. 16 rows add their K/V and FLOPs, and the weights, which "
        "are nearly all bytes, stay the same.",
    ),
    ask(
        "a",
        "Suppose an engine keeps no K and V. What happens as an answer grows?",
        "each gap is about as long as a prefill of the text so far",
        "Nothing is kept, so each token needs a pass over all tokens before it. Gaps grow with the text.",
        "only the TTFT gets longer, since prefill makes all K and V of the text",
        "Token 1 needs a pass over the prompt in either case. The TTFT is what stays.",
        "nothing, as long as compute is not the limit",
        "A pass over hundreds of tokens is right of the ridge: compute becomes the limit just because of it.",
    ),
    ask(
        "b",
        "Readers read along, and a long prompt arrives. You halve `chunk_tokens`. What happens?",
        "gaps and the prompt's TTFT both get shorter",
        "The prompt needs more passes now, and each has its fixed price and carries the rows again. Somebody pays.",
        "the longest gap gets shorter, the prompt's TTFT longer",
        "A pass is shorter, so readers get their tokens sooner. The prompt needs twice as many passes, each with "
        "its fixed price and the rows.",
        "nothing: the prompt has as many tokens as before",
        "The tokens are the same, but readers get one token a pass. What counts for them is how long a pass is.",
        "the longest gap gets longer, for there are more passes",
        "A gap is one pass, not all of them. More passes are shorter ones.",
    ),
    ask(
        "b",
        "A chunk and the readers' rows go through in one mixed pass, where they could take turns. What does that "
        "spare, and cost?",
        "it spares the FLOPs of the rows, and costs memory",
        "Every row is computed in either case. Look at what is read.",
        "it spares reading the weights for a step, and rows wait for the whole pass",
        "Chunk and rows share one reading of the weights. In return each row's token comes only when the pass, "
        "with its chunk, has ended.",
        "it spares the newcomer a step between two chunks, and costs nothing at all",
        "The newcomer's pass carries the rows, so it is a little longer than without them; and the rows sit in it "
        "to its end.",
    ),
    ask(
        "a",
        '"Put enough rows into a step, and compute becomes the limit in any case." What is wrong with it?',
        "rows bring K/V of their own: with long contexts reading grows faster",
        "If a row's K/V take longer to read than its FLOPs to compute, every row that joins makes the step more of "
        "a reader.",
        "nothing: the rows share the weights, so each one adds FLOPs and hardly any bytes",
        "They share the weights, and they do not share K/V. For a long context the K/V are the larger part.",
        "a step never does enough FLOPs",
        "With short contexts it does: from some number of rows on a step lies right of the ridge.",
    ),
)
