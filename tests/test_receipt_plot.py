"""Pictures of receipts, counters, ring slots and the paging decision: drawn is what was measured, and said too."""

import pytest
from matplotlib.collections import PolyCollection
from test_block_map import arrivals, crowded
from test_plots import LATEX

from disagg import Config, Request, simulate
from disagg.plan.config import PRESETS
from disagg.plan.errors import RequestError
from disagg.plan.link import Link
from disagg.plan.preemption import Arm, Choice, PreemptionCosts
from disagg.show.plots.counter_plot import counters, counters_picture
from disagg.show.plots.paging_plot import costs_picture, ring_picture
from disagg.show.plots.palette import COLOURS
from disagg.show.plots.receipt_plot import GREY, INKS, PALE, SOLID, diff_picture, receipt_picture, receipts_picture
from disagg.show.plots.summaries import milliseconds
from disagg.trace.receipts import NAMES, WORKS


def test_works_are_solid_in_a_timelines_colours_and_waits_pale_each_with_a_hatch_of_its_own():
    assert set(INKS) == set(NAMES)
    assert all(ink.hatch and ink.face in (GREY, *PALE.values()) for name, ink in INKS.items() if name not in WORKS)
    assert all(not INKS[name].hatch for name in WORKS)
    assert {INKS[name].face for name in SOLID} == set(COLOURS.values())
    assert len(set(INKS.values())) == len(NAMES)


def strip(axes, name: str, row: int) -> float:
    found = [c for c in axes.collections if isinstance(c, PolyCollection) and c.get_label() == name]
    boxes = [path.get_extents() for c in found for path in c.get_paths()]
    return sum(box.width for box in boxes if box.y0 < row < box.y1)


@pytest.mark.parametrize("preset", ["paged", "two_colocated"])
def test_each_name_is_drawn_in_the_strip_and_in_its_row_as_long_as_it_took(preset):
    run = crowded(preset, host_blocks=40)
    for result in run.results[5:9]:
        axes = receipt_picture(result).figure.axes[0]
        totals = result.receipt.totals()
        for row, (name, seconds) in enumerate(totals.items(), 1):
            assert strip(axes, name, 0) == pytest.approx(1e3 * seconds)
            assert strip(axes, name, -row) == pytest.approx(1e3 * seconds)
        labels = [text.get_text() for text in axes.get_yticklabels()]
        assert labels == ["receipt", *totals]
        texts = [text.get_text() for text in axes.texts]
        assert texts == [*map(milliseconds, (result.receipt.total_s, *totals.values())), "token 1 (TTFT)", "token 2"]


def test_tokens_stand_where_they_came():
    result = crowded().results[4]
    lines = [line.get_xdata()[0] for line in receipt_picture(result).figure.axes[0].lines]
    assert lines == pytest.approx([1e3 * result.ttft_s, 1e3 * (result.ttft_s + result.second_token_gap_s)])


def test_a_receipts_sentence_states_what_the_data_say():
    result = crowded(host_blocks=40).results[8]
    bill, picture = result.receipt, receipt_picture(result)
    waits = {name: s for name, s in bill.totals().items() if name not in WORKS}
    longest = max(waits, key=waits.get)
    assert f"of waits (most: {longest}, {milliseconds(waits[longest])})" in picture.finding
    assert picture.finding in picture.alt


def test_without_times_a_finding_is_the_same_at_every_speed():
    slow, fast = (crowded("staged", link=link, decode_blocks=400).results[3] for link in (1e6, 50e6))
    assert receipt_picture(slow).finding != receipt_picture(fast).finding
    assert receipt_picture(slow, times=False).finding == receipt_picture(fast, times=False).finding
    assert receipt_picture(slow, times=False).finding.endswith("waits and works add up to the measured time.")
    slow.timeline.spans.clear()
    assert receipt_picture(slow, times=False).finding.endswith("do not explain all of the measured time.")


def test_a_request_without_a_second_token_has_a_picture():
    run = simulate(Config.preset("staged"), [Request([1, 2, 3], 1)])
    picture = receipt_picture(run.results[0])
    assert picture.png() and "token 2" not in picture.finding


def bars(picture) -> list:
    return [(group.get_label(), group.patches[0]) for group in picture.figure.axes[0].containers]


def test_bars_of_presets_are_their_mean_receipts_works_first():
    runs = {name: crowded(name, 12, host_blocks=0) for name in PRESETS}
    picture = receipts_picture(runs)
    drawn = bars(picture)
    for row, run in enumerate(runs.values()):
        own = [(name, bar) for name, bar in drawn if round(bar.get_y() + bar.get_height() / 2) == -row]
        seconds = {name: seconds for name, seconds in run.receipts().items() if seconds}
        assert {name: bar.get_width() / 1e3 for name, bar in own} == pytest.approx(seconds)
        ordered = [name in WORKS for name, _ in sorted(own, key=lambda pair: pair[1].get_x())]
        assert ordered == sorted(ordered, reverse=True), "works from the left, then waits"
    totals = {name: sum(run.receipts().values()) for name, run in runs.items()}
    low = min(totals, key=totals.get)
    assert f"{low} {milliseconds(totals[low])}" in picture.finding


def test_bars_keep_one_unit_however_long_a_run_takes():
    runs = {f"{n} tokens": simulate(Config.preset("colocated"), [Request([7] * 32, n)]) for n in (8, 200)}
    picture = receipts_picture(runs)
    totals = [1e3 * sum(run.receipts().values()) for run in runs.values()]
    assert totals[0] < 10_000 < totals[1]
    ends = [note.get_text().split("\n")[0] for note in picture.figure.axes[0].texts if " ms" in note.get_text()]
    assert ends == [f"{total:.0f} ms" for total in totals]
    assert all(f"{total:.0f} ms, of which" in picture.finding for total in totals)


def test_a_difference_goes_left_and_right_and_sums_up():
    a, b = crowded("split", host_blocks=0), crowded("paged", host_blocks=40)
    picture = diff_picture("split", a, "paged", b)
    widths = {name: bar.get_width() for name, bar in bars(picture)}
    before, after = a.receipts(), b.receipts()
    assert widths.pop("all") == pytest.approx(sum(widths.values()))
    for name, width in widths.items():
        assert width == pytest.approx(1e3 * (after.get(name, 0) - before.get(name, 0)))
    assert set(widths) == {*before, *after}
    largest = max(widths, key=lambda name: abs(widths[name]))
    assert f"most changes in {largest}" in picture.finding
    assert diff_picture("a", a, "b", a).finding == "A request takes as long with b as with a."


def test_other_requests_are_not_compared():
    a = crowded(count=4)
    b = simulate(Config.preset("paged"), arrivals(5))
    with pytest.raises(RequestError, match="a served 4 requests of .*give both runs the same requests"):
        diff_picture("a", a, "b", b)


def test_names_from_outside_are_drawn_as_text():
    run = crowded(count=4)
    receipts_picture({LATEX: run, "b": run}).png()  # mathtext would raise
    diff_picture(LATEX, run, "b", run).png()
    diff_picture("a", run, LATEX, run).png()


@pytest.mark.parametrize("preset", PRESETS)
def test_counters_are_the_marks(preset):
    run = crowded(preset, host_blocks=40)
    picture, rows = counters_picture(run), counters(run)
    marked = {}
    for mark in run.timeline.marks:
        if isinstance(mark.value, int):
            marked.setdefault(mark.name, []).append((mark.at_ns / 1e6, mark.value))
    drawn = sorted(list(zip(row.times_ms, row.values, strict=True)) for row in rows)
    assert drawn == sorted(steps for steps in marked.values() if max(value for _, value in steps))
    assert len(picture.figure.axes) == len(rows) == len({row.name for row in rows})
    assert [[text.get_text() for text in axes.texts] for axes in picture.figure.axes] == [
        [row.name, row.extreme] for row in rows
    ]
    assert picture.png()[:4] == b"\x89PNG"


def test_counters_name_the_full_memory_and_the_longest_queue():
    run = crowded(host_blocks=40)
    assert "memories that were ever full: decode." in counters_picture(run).finding
    batch = max(mark.value for mark in run.timeline.marks if mark.name == "batch 0")
    assert f"the largest batch had {batch} rows" in counters_picture(run).finding
    empty = simulate(Config.preset("staged"), [])
    assert "ever full: none" in counters_picture(empty).finding and counters_picture(empty).png()


EXPOSED = {"no latency": {1: 182.0, 2: 66.0, 8: 66.0}, "latency": {1: 782.0, 2: 366.0, 8: 86.0}}


def test_each_setting_is_a_line_over_its_slots():
    picture = ring_picture(EXPOSED)
    axes = picture.figure.axes[0]
    assert [list(line.get_ydata()) for line in axes.lines] == [list(line.values()) for line in EXPOSED.values()]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2", "8"]
    assert picture.finding == (
        "No latency: 182 ms with 1 slot, 66 ms with 2 slots, 66 ms with 8 slots; "
        "latency: 782 ms with 1 slot, 366 ms with 2 slots, 86 ms with 8 slots."
    )
    assert picture.png()[:4] == b"\x89PNG"


def test_turns_too_near_for_two_numbers_have_one():
    """Spilling wins from 26 on, loses at 33 alone: the number is that from where on it wins for good."""
    texts = costs_picture(choices(4, 0.02, 16)).figure.axes[0].texts
    assert [text.get_text() for text in texts] == ["34 tokens", "26 tokens"]


def choices(prefill_ms: float, fixed_s: float, block: int = 1) -> list[Choice]:
    """Both copies take 2 ms a token."""
    costs, found = PreemptionCosts(*[Link(1e6, fixed_s=fixed_s)] * 2), []
    for tokens in range(1, 61):
        spill_ns, again_ns = costs.spill_ns(-(-tokens // block) * block * 1000, 0), round(tokens * prefill_ms * 1e6)
        found.append(Choice(0, tokens, spill_ns, again_ns, Arm.SPILL if spill_ns <= again_ns else Arm.RECOMPUTE))
    return found


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
    assert [text.get_text() for text in axes.texts] == ["20 tokens"], "where the cheaper way changes"
