"""Counting by hand and by module; ceilings; pictures that say what was measured."""

import pytest
import torch

from disagg import Config, Request, simulate
from disagg.run.model.model import load_model
from disagg.show.plots.gap_plot import gaps_picture
from disagg.show.plots.roofline import (
    Ceilings,
    Point,
    Sizes,
    Work,
    beside_picture,
    measure_ceilings,
    prefill_work,
    roofline_picture,
    seconds_of,
    step_work,
)

SIZES = Sizes(layers=2, layer_weights=100, head_weights=30, width=4, token_bytes=10)
PAPER = Ceilings(100.0, 10.0)


def test_prefill_by_hand():
    """Three tokens: 3 × 200 weights and the head once, 2 FLOPs each; attention over 1 + 2 + 3 tokens."""
    assert prefill_work(SIZES, 3) == Work(2 * (600 + 30) + 4 * 2 * 4 * 6, 4 * 230 + 30)


def test_step_by_hand():
    """The weights are read once for both rows, K/V for each; the head answers every row."""
    assert step_work(SIZES, [5, 7]) == Work(2 * 2 * 230 + 4 * 2 * 4 * 12, 4 * 230 + 120)


def test_a_prompt_of_one_token_and_a_step_of_one_row_ask_for_the_same():
    assert prefill_work(SIZES, 1) == step_work(SIZES, [1])


def test_sizes_count_every_matrix_of_the_module():
    model = load_model("tiny")
    matrices = [p for name, p in model.reference().named_parameters() if p.dim() == 2 and "embed" not in name]
    sizes = Sizes.of(model)
    head = sizes.head_weights if model.config.tie_word_embeddings else 0  # a tied head is no parameter of its own
    assert sizes.weights + sizes.head_weights == sum(p.numel() for p in matrices) + head
    assert sizes.token_bytes == model.shape.token_bytes


def test_the_slower_of_computing_and_reading():
    assert PAPER.ridge == 10
    assert Work(1000, 10).seconds(PAPER) == 10  # compute
    assert Work(10, 1000).seconds(PAPER) == 100  # memory


def test_ceilings_are_measured_and_threads_put_back():
    before = torch.get_num_threads()
    found = measure_ceilings(threads=1, side=32, rows=64, repeats=2)
    assert found.flops_per_s > 0 and found.bytes_per_s > 0
    assert torch.get_num_threads() == before


def test_roofline_says_the_limit_of_each_point():
    points = [Point("prefill", "prefill", Work(1000, 10)), Point("one row", "decode", Work(10, 1000), 200.0)]
    picture = roofline_picture(PAPER, points)
    assert picture.finding == (
        "The ridge is at 10.0 FLOPs a byte. Prefill: 100.0 FLOPs a byte, the limit is compute, 10000 ms at least. "
        "One row: 0.0 FLOPs a byte, the limit is memory; 200000 ms measured, 50% of the ceiling."
    )
    lines = {line.get_label(): line.get_xydata().tolist() for line in picture.figure.axes[0].lines}
    assert lines["one row"] == [[0.01, 10 / 200.0 / 1e9]]
    assert lines["prefill"] == [[100.0, 100.0 / 1e9]]  # on the roof
    assert picture.png()


def test_measured_bars_stand_beside_predicted_ones():
    picture = beside_picture(
        {"prefill": {"8 tokens": (0.1, 0.15), "9 tokens": (0.1, 0.2)}, "decode": {"1": (1.0, 3.0)}}
    )
    assert picture.finding == (
        "Prefill took 1.5 to 2.0 times as long as predicted (2 cases). "
        "Decode took 3.0 to 3.0 times as long as predicted (1 case)."
    )
    widths = [round(bar.get_width()) for bar in picture.figure.axes[0].patches]
    assert widths == [100, 150, 100, 200]
    assert picture.png()


def _run(chunk: int):
    requests = [Request([5] * 32, 12), Request([7] * 160, 2, arrival_s=0.4)]
    return simulate(Config.preset("colocated", model="tiny", chunk_tokens=chunk), requests)


def test_seconds_of_takes_spans_of_that_kind_and_count():
    run = _run(256)
    assert seconds_of(run, "prefill", 32) == pytest.approx(0.133, abs=1e-4)  # 2 + 32 × 4 ms, the head 3
    assert seconds_of(run, "decode", 2) > seconds_of(run, "decode", 1)


def test_gaps_show_who_waited_for_the_long_prompt():
    runs = {"whole": _run(256), "in chunks": _run(32)}
    picture = gaps_picture(runs, [0])
    longest = {name: max(run.results[0].itl_s) for name, run in runs.items()}
    assert longest["whole"] > 2 * longest["in chunks"]
    for name, gap in longest.items():
        assert f"{name} {1e3 * gap:.0f} ms" in picture.finding
    points = [sum(len(line.get_xdata()) for line in axes.lines) for axes in picture.figure.axes]
    assert points == [11, 11]
    assert picture.png()
