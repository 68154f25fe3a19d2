"""Pictures of slots of a ring and of the paging decision: drawn are the numbers given, and the sentence says them."""

import pytest

from disagg.plan.link import Link
from disagg.plan.preemption import Arm, Choice, PreemptionCosts
from disagg.show.plots.paging_plot import costs_picture, ring_picture

EXPOSED = {"no latency": {1: 182.0, 2: 66.0, 8: 66.0}, "latency": {1: 782.0, 2: 366.0, 8: 86.0}}


@pytest.mark.parametrize("projector", [False, True])
def test_each_setting_is_a_line_over_its_slots(projector):
    picture = ring_picture(EXPOSED, projector=projector)
    axes = picture.figure.axes[0]
    assert [list(line.get_ydata()) for line in axes.lines] == [list(line.values()) for line in EXPOSED.values()]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2", "8"]
    assert picture.finding == (
        "No latency: 182 ms with 1 slot, 66 ms with 2 slots, 66 ms with 8 slots; "
        "latency: 782 ms with 1 slot, 366 ms with 2 slots, 86 ms with 8 slots."
    )
    assert picture.png()[:4] == b"\x89PNG"


def choices(prefill_ms: float, fixed_s: float, block: int = 1) -> list[Choice]:
    """Both copies take 2 ms a token."""
    costs = PreemptionCosts(*[Link(1e6, fixed_s=fixed_s)] * 2, prefill_ns_per_token=prefill_ms * 1e6)
    room = {"host_room": True, "prefill_backlog": 0, "bytes_ahead": 0}
    return [costs.choose(0, tokens, -(-tokens // block) * block * 1000, **room) for tokens in range(1, 61)]


@pytest.mark.parametrize(
    "prefill_ms, fixed_s, block, words",
    [
        (4, 0.02, 1, "Below 20 tokens it costs less to compute again; from 20 on it costs less to spill and fetch."),
        (1, 0.02, 1, "It costs less to compute again at every length from 1 to 60 tokens."),
        (4, 0.0, 1, "It costs less to spill and fetch at every length from 1 to 60 tokens."),
        (4, 0.02, 16, "Below 26 tokens it costs less to compute again; up to 33 it changes with the length; "
                      "from 34 on it costs less to spill and fetch."),
        (3, 0.02, 16, "Below 46 tokens it costs less to compute again; up to 55 it changes with the length; "
                      "from 56 on it costs less to spill and fetch."),
    ],
)  # fmt: skip
def test_the_sentence_says_where_each_way_is_cheaper(prefill_ms, fixed_s, block, words):
    made = choices(prefill_ms, fixed_s, block)
    assert costs_picture(made).finding == words
    assert costs_picture(made[::-1]).finding == words, "in any order"


def test_both_costs_are_drawn_and_the_cheaper_spill_shaded():
    made = choices(4, 0.02)
    picture = costs_picture(made)
    axes = picture.figure.axes[0]
    assert [list(line.get_ydata()) for line in axes.lines] == [
        [choice.spill_ns / 1e6 for choice in made],
        [choice.recompute_ns / 1e6 for choice in made],
    ]
    shaded = sum(patch.get_width() for patch in axes.patches)
    assert shaded == sum(choice.arm is Arm.SPILL for choice in made[:-1])
    assert "At 60 tokens: 160 ms to spill and fetch, 240 ms to compute again." in picture.alt
