"""Questions of notebooks/00_start_here.ipynb."""

from disagg.course.questions import ask

QUIZ = (
    ask(
        "b",
        'The link carries a tenth of the bytes a second. Which of the three changes for one request on "streamed"?',
        "the TTFT: token 1 is sent to decode first",
        "Prefill makes token 1 and shows it at once. It waits for no copy.",
        "the second-token gap",
        "Decode needs all K/V before it can write token 2. What the slow link does not hide is a wait after token 1.",
        "the words: some K/V come too late to be used",
        "Decode does not begin before every layer has landed, so it reads the same numbers, only later.",
        "all later gaps: each token crosses the link",
        "The K/V cross the link once. After that decode has them, and adds its own.",
    ),
    ask(
        "a",
        "The model writes token 20 of an answer. Why does it not have to compute the first 19 and the prompt again?",
        "their K and V do not change when text is added, so they were kept",
        "Each token looks only at those before it, so nothing new changes its K and V. A step computes the newest "
        "token and reads the rest.",
        "prefill has stored the answer in the weights",
        "Weights never change while a model answers; two users share them. What belongs to one text is in its K/V.",
        "it does compute them again, but a decode device does so in no time at all",
        "Then a step would take as long as a prefill of the whole text, and longer with every token. Steps are "
        "short because it does not.",
    ),
    ask(
        "c",
        "An answer has 20 tokens. How many decode steps did it take?",
        "21: one for each token, and one to find the end",
        "The end is no step of its own here: the answer stops because it has its 20 tokens.",
        "20: each step gives one token",
        "Each step does give one, but not all tokens come from a step. Where does token 1 come from?",
        "19: token 1 is not from a step",
        "Prefill gives token 1 at its end. The other 19 come from a step each.",
    ),
    ask(
        "c",
        "A run says H = 100 %. What does that mean for the user?",
        "nothing was copied: the K/V stayed where they were written",
        "Then there would be no copying to hide. H is a share of copying that did happen.",
        "the link is as fast as memory",
        "A slow link can give 100 % too, if the prefill that goes on is long enough to hide it.",
        "when token 1 was there, no copy was left to wait for",
        "All copying took place while prefill still ran. E is 0: what token 2 still waits for is its step.",
    ),
    ask(
        "b",
        "A prompt has 129 tokens, and a block holds 16. K/V of how many tokens travel?",
        "129",
        "Blocks travel, and the last one travels whole even if it holds one token.",
        "144",
        "129 tokens need 9 blocks, the last with one token in it. 9 × 16 is 144.",
        "128",
        "That is 8 blocks, and token 129 would be missing. Decode could not go on without it.",
    ),
)
