"""Page maps: an instant looked up equals a replay up to it; blocks are conserved."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.collections import PolyCollection

from disagg import Config, Request, simulate
from disagg.plan.blocks import STATES
from disagg.plan.config import PRESETS
from disagg.plan.preemption import Arm
from disagg.plan.request import Stage
from disagg.show.plots.block_plot import STATE_HATCH, page_map_picture, pages_over_time_picture, patchwork
from disagg.show.plots.block_words import BlockView
from disagg.trace.block_map import Held, PageMap, decisions
from disagg.trace.spans import BlockMove
from disagg.trace.timeline import Timeline

SIZES = {"decode 0": 7, "host": 5, "prefill 0": 6, "ring": 8}


def arrivals(count=30, seed=3) -> list[Request]:
    draw = random.Random(seed)
    return [Request([1] * draw.randint(10, 150), draw.randint(8, 60), arrival_s=0.15 * i) for i in range(count)]


def crowded(preset="paged", count=30, **changes):
    """A run in which requests lose their blocks."""
    return simulate(Config.preset(preset, **{"decode_blocks": 40, "link": 0.05e9, **changes}), arrivals(count))


@st.composite
def timelines(draw) -> Timeline:
    """Legal moves of three memories: reserve, change state, free; several of them may fall on one instant."""
    state = {pool: [("free", None)] * size for pool, size in SIZES.items() if pool != "ring"}
    moves, at_ns = [], 10
    for _ in range(draw(st.integers(0, 25))):
        at_ns += draw(st.integers(0, 2))
        pool = draw(st.sampled_from(sorted(state)))
        blocks, owner = state[pool], draw(st.integers(0, 3))
        own = [index for index, (_, holder) in enumerate(blocks) if holder == owner]
        free = [index for index, (_, holder) in enumerate(blocks) if holder is None]
        after = draw(st.sampled_from(STATES)) if own else "in_flight"
        taken = (free if after == "in_flight" else own)[: draw(st.integers(1, 4))]
        owner = None if after == "free" else owner
        for index in taken:
            blocks[index] = after, owner
        if taken:
            moves.append(BlockMove(at_ns, pool, after, owner, tuple(taken)))
    return Timeline(start_ns=10, moves=moves, sizes=SIZES)


def replay(timeline: Timeline, at_ns: int) -> dict[str, list[tuple]]:
    blocks = {pool: [("free", None)] * size for pool, size in SIZES.items() if pool != "ring"}
    for move in timeline.moves:
        if move.at_ns <= at_ns:
            for index in move.blocks:
                blocks[move.pool][index] = move.state, move.owner
    return blocks


def check_conserved(pages: PageMap) -> None:
    """No block changes hands but through free, and each has one state."""
    now = {}
    for move in pages.moves:
        for block in move.blocks:
            state, owner = now.get((move.pool, block), ("free", None))
            stolen = owner is not None and move.owner not in (owner, None)
            after = f"becomes {move.state} and owned by {move.owner}"
            before = f"{move.pool}: at {move.at_ns} ns block {block}, {state} and owned by {owner}"
            assert not stolen and (move.state == "free") == (move.owner is None), f"{before}, {after}"
            assert (state, move.state) != ("free", "free"), f"{before}, is freed twice"
            now[move.pool, block] = move.state, move.owner
    for pool, size in pages.sizes.items():
        for at_ns, counts in pages.counts(pool):
            found = f"{pool}: at {at_ns} ns {counts} are not {size} blocks"
            assert sum(counts.values()) == size and min(counts.values()) >= 0, found


@given(timelines())
def test_an_instant_equals_the_replay_up_to_it(timeline):
    pages = PageMap(timeline)
    since = {pool: [10] * size for pool, size in SIZES.items() if pool != "ring"}
    before = replay(timeline, 9)
    for at_ns in range(10, pages.end_ns + 3):
        wanted = replay(timeline, at_ns)
        for pool, blocks in pages.at(at_ns).items():
            since[pool] = [
                s if a == b else at_ns for s, a, b in zip(since[pool], before[pool], wanted[pool], strict=True)
            ]
            held = [Held(*pair, at) for pair, at in zip(wanted[pool], since[pool], strict=True)]
            assert blocks == held
        before = wanted


@given(timelines())
def test_counts_are_conserved_and_step_when_blocks_do(timeline):
    pages = PageMap(timeline)
    check_conserved(pages)
    for pool, size in pages.sizes.items():
        steps = dict(pages.counts(pool))
        assert min(steps) == 10 and all(sum(counts.values()) == size for counts in steps.values())
        for at_ns in range(10, pages.end_ns + 1):
            now = steps[max(at for at in steps if at <= at_ns)]
            assert now == pages.counts_at(at_ns)[pool]
            assert [now[s] for s in STATES] == [[h.state for h in pages.at(at_ns)[pool]].count(s) for s in STATES]


@given(timelines())
def test_stretches_and_visits_cover_what_is_held(timeline):
    pages = PageMap(timeline)
    for at_ns in range(10, pages.end_ns):
        for pool, blocks in pages.at(at_ns).items():
            found = {s.block: s for s in pages.stretches(pool) if s.start_ns <= at_ns < s.end_ns}
            assert found.keys() == {index for index, held in enumerate(blocks) if held.owner is not None}
            assert all((s.state, s.owner) == blocks[block][:2] for block, s in found.items())
            for owner in {s.owner for s in found.values()}:
                visits = [v for v in pages.visits(owner) if v.pool == pool and v.start_ns <= at_ns < v.end_ns]
                assert len(visits) == 1
                assert visits[0].blocks >= sum(s.owner == owner for s in found.values())


@pytest.mark.parametrize(
    "moves, words",
    [
        ([(0, "used", 1, (2,)), (5, "used", 2, (2,))], "at 5 ns block 2, used and owned by 1, becomes used"),
        ([(0, "free", None, (2,))], "freed twice"),
        ([(0, "used", None, (2,))], "owned by None"),
        ([(0, "used", 1, (2,)), (1, "free", 1, (2,))], "becomes free and owned by 1"),
    ],
)
def test_what_breaks_conservation_is_named(moves, words):
    timeline = Timeline(moves=[BlockMove(at, "host", state, owner, blocks) for at, state, owner, blocks in moves])
    timeline.sizes = SIZES
    with pytest.raises(AssertionError, match=words):
        check_conserved(PageMap(timeline))


@pytest.mark.parametrize("preset", PRESETS)
def test_free_blocks_are_those_the_recorder_marked(preset):
    run = crowded(preset, host_blocks=40)
    pages = PageMap(run.timeline)
    check_conserved(pages)
    marked = {pool: dict.fromkeys([0], size) for pool, size in pages.sizes.items()}
    for mark in run.timeline.marks:
        if mark.name.startswith("free "):
            marked[mark.name.removeprefix("free ")][mark.at_ns] = mark.value
    for pool in pages.sizes:
        free = {at: counts["free"] for at, counts in pages.counts(pool)}
        assert marked[pool].keys() <= {0, *free}
        assert all(free[at] == value for at, value in marked[pool].items() if at in free)
        assert min(free.values()) == pages.sizes[pool] - run.peak_blocks[pool]


def test_a_spilled_request_visits_prefill_decode_host_and_decode_again():
    run = crowded(host_blocks=40)
    pages = PageMap(run.timeline)
    spilled = next(c.request for c in run.choices if c.arm is Arm.SPILL)
    assert [v.pool for v in pages.visits(spilled)] == ["prefill 0", "decode 0", "host", "decode 0"]
    first, again = (v for v in pages.visits(spilled) if v.pool == "decode 0")
    host = next(v for v in pages.visits(spilled) if v.pool == "host")
    assert host.start_ns < first.end_ns < again.start_ns < host.end_ns, "copies hold both ends"
    assert pages.of_request(spilled)[0].start_ns == pages.visits(spilled)[0].start_ns


@pytest.mark.parametrize("host_blocks", [0, 5, 40])
@pytest.mark.parametrize("preset", ["paged", "colocated", "dynamic"])
def test_decisions_are_the_choices_at_their_instants(preset, host_blocks):
    run = crowded(preset, host_blocks=host_blocks)
    made = decisions(run.results, run.choices)
    assert made and [d.choice for d in made] == run.choices
    stages = {Arm.SPILL: Stage.SPILLING, Arm.RECOMPUTE: Stage.QUEUED}
    for decision in made:
        own = next(result for result in run.results if result.request == decision.choice.request)
        assert (decision.at_ns, stages[decision.choice.arm]) in own.stages


# ---- pictures --------------------------------------------------------------------------------------------------------


def squares(figure, state: str) -> int:
    found = [c for axes in figure.axes for c in axes.collections if isinstance(c, PolyCollection)]
    return sum(len(c.get_paths()) for c in found if c.get_label() == state)


def test_every_held_block_is_a_square_in_its_state():
    run = crowded(host_blocks=40)
    pages = PageMap(run.timeline)
    for at_ns in (pages.changes[len(pages.changes) // 3], run.choices and decisions(run.results, run.choices)[0].at_ns):
        picture = page_map_picture(run, at_ns / 1e9)
        counts = pages.counts_at(at_ns).values()
        for state in STATE_HATCH:
            assert squares(picture.figure, state) == sum(count[state] for count in counts)
        assert squares(picture.figure, "age") == sum(sum(c.values()) - c["free"] for c in counts)
        for pool, blocks in pages.at(at_ns).items():
            held = sum(h.owner is not None for h in blocks)
            assert f"{held} of {pages.sizes[pool]}" in picture.finding


def test_blocks_that_were_never_held_take_no_room_between_prompts_and_what_rows_grew():
    run = simulate(Config.preset("streamed", decode_blocks=2000), [Request([1] * 40, 20), Request([1] * 20, 30)])
    view = BlockView(run)
    assert view.map.touched("decode 0") == [0, 1, 2, 3, 4, 1998, 1999]
    assert {edge for box in patchwork(view, "decode 0") for edge in box[4:]} <= set(range(8))
    picture = page_map_picture(run, 0.1)
    title = next(t.get_text() for axes in picture.figure.axes for t in axes.texts if "decode" in t.get_text())
    assert title.endswith("of 2,000 blocks held (1,993 more were never used in this run)")
    assert max(axes.get_xlim()[1] * axes.get_ylim()[0] for axes in picture.figure.axes) < 100


def test_the_last_decision_stands_under_the_map_with_both_costs():
    run = crowded(host_blocks=40)
    first = decisions(run.results, run.choices)[0]
    early, late = (page_map_picture(run, (first.at_ns + shift) / 1e9) for shift in (-1000, 1000))
    assert early.figure.texts[0].get_text() == "No request has lost its blocks yet."
    words = " ".join(late.figure.texts[0].get_text().split())
    assert f"request {first.choice.request} ({first.choice.tokens} tokens) lost its blocks and was spilled" in words
    assert f"{first.choice.spill_ns / 1e6:.0f} ms to spill and fetch" in words
    assert f"{first.choice.recompute_ns / 1e6:.0f} ms to compute again" in words
    again = crowded(host_blocks=0)
    assert "is computed again: no room in host memory to spill" in pages_over_time_picture(again).alt


def test_boxes_over_time_cover_every_stretch_once():
    view = BlockView(crowded(host_blocks=40))
    for pool in view.pools:
        area = sum((box.end_s - box.start_s) * (box.high - box.low) for box in patchwork(view, pool))
        assert area == pytest.approx(sum(s.end_ns - s.start_ns for s in view.map.stretches(pool)) / 1e9)


def test_over_time_names_peaks_and_decisions():
    run = crowded(host_blocks=40)
    picture = pages_over_time_picture(run)
    assert f"decode device {run.peak_blocks['decode 0']} of 40" in picture.finding
    assert f"{len(run.choices)} times a request lost its blocks: {run.counts['spills']} spilled" in picture.finding
    strip = {line.get_label(): len(line.get_xdata()) for line in picture.figure.axes[-1].lines}
    assert (strip["spill"], strip["fetch"], strip["recompute"]) == (run.counts["spills"], run.counts["fetches"], 0)
    assert picture.png()[:4] == b"\x89PNG"


def test_runs_without_paging_or_without_requests_have_pictures_too():
    assert "no request lost its blocks" in pages_over_time_picture(crowded("split", decode_blocks=400)).finding
    empty = simulate(Config.preset("paged", decode_blocks=4, host_blocks=4), [])
    for picture in (pages_over_time_picture(empty), page_map_picture(empty, 0)):
        assert picture.finding and picture.png()
