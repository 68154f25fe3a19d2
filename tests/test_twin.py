"""The twin: what it reads off runs, how it is fitted, what it predicts, and what it is held to."""

import dataclasses
import gc
import json
import weakref

import pytest
from engine_tools import before, opened, small, tiny
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex

from benchmarks import on_record, twin_accuracy
from benchmarks.day_process import _repeated
from benchmarks.robustness import closed_forms
from benchmarks.robustness.random_scenarios import simulate_seed
from disagg import Config, Request, simulate
from disagg.plan.blocks import BlockPool
from disagg.plan.commands import Emit
from disagg.plan.config import PRESETS
from disagg.plan.errors import ConfigError, EngineError, FileError
from disagg.plan.link import Link
from disagg.show.calibrate import calibrate, calibration, fitted
from disagg.show.overlay import overlay_picture
from disagg.show.plots.palette import COLOURS
from disagg.show.validate import Compared, HeldOut, predicted, validate
from disagg.trace.results import Result, Run
from disagg.trace.spans import Span
from disagg.trace.timeline import Timeline
from disagg.twin import samples
from disagg.twin.calibration import Calibration
from disagg.twin.hardware import Costs, Fit, Hardware, Predicted, device_named
from disagg.twin.model_shapes import TINY, sizes_of
from disagg.twin.replay import in_lines, replay
from disagg.twin.simulated_engine import Speeds
from disagg.twin.traces import Arrival
from disagg.twin.work import Sizes
from disagg.twin.workloads import Lengths, poisson, requests_of

SIZES = sizes_of("smollm2", "float32")
CPU = device_named("CPU")
TRUE = Fit(
    0.7, 0.3, 0.8, 0.4, copying=0.6, pass_s=3e-3, step_s=4e-3, row_s=1e-3, batch_s=6e-3, copy_s=2e-4, turn_s=5e-4,
    beside_pass=1.5, beside_step=1.2, handed_off=0.3, source="made up",
)  # fmt: skip


def served(device, preset="streamed", **changes):
    asked = requests_of(poisson(24, 2.0, Lengths(90, 0.8, 16, 500), Lengths(20, 0.5, 2, 60), 3), vocab=100)
    return simulate(Config.preset(preset, **changes), asked, hardware=Hardware(device, device))


TRULY = dataclasses.replace(CPU, fit=TRUE)


def layer_s(work: samples.PassSample) -> float:
    return (work.seconds - work.lead_s - work.tail_s) / (SIZES.layers - 1)


@pytest.mark.parametrize("preset", ["colocated", "split", "streamed", "dynamic"])
def test_works_are_read_off_spans_as_they_were_asked(preset):
    run, costs = served(TRULY, preset), Costs(SIZES, TRULY)
    passes, steps = samples.passes(run), samples.steps(run, pads=True)
    mixed = samples._mixed(run)
    alone = [span.kind for span in run.timeline.spans if (span.place, span.start_ns) not in mixed]
    assert (len(passes), len(steps)) == (alone.count("prefill"), alone.count("decode"))
    assert bool(mixed) == (preset == "colocated")
    for work in passes:
        slow = layer_s(work) * SIZES.layers / costs.pass_s(work.chunks)
        assert slow == pytest.approx(1.0, abs=1e-6) or slow == pytest.approx(TRUE.beside_pass, abs=1e-6)
    for step in steps:
        slow = step.seconds / costs.step_s(step.rows, step.tokens)
        assert slow == pytest.approx(1.0, abs=1e-6) or slow == pytest.approx(TRUE.beside_step, abs=1e-6)
    computed = sum(stop - start for work in passes for start, stop in work.chunks)
    assert mixed or computed == sum(result.prompt_tokens for result in run.results)


def test_what_runs_beside_a_pass_or_a_step_is_a_share_of_its_time():
    spans = [
        Span("prefill", "prefill 0", 0, 400, (0,), count=9, firsts=(0,), hand_offs_ns=(100, 300)),
        Span("decode", "decode 0", 300, 500, (1,), count=1), Span("decode", "decode 0", 600, 600, (1,), count=1),
    ]  # fmt: skip
    run = Run(Config(), [Result(0, 9, 0), Result(1, 4, 0)], Timeline(spans))
    assert [work.beside for work in samples.passes(run)] == [0.25]
    assert [step.beside for step in samples.steps(run, pads=True)] == [0.5, 0.0], "a step of no time has no share"


def test_turns_are_of_steps_that_follow_one_another():
    assert set(samples.turns(served(TRULY))) == {TRUE.turn_s}
    assert set(samples.turns(served(TRULY, "colocated"))) == {TRUE.turn_s}, "a pass between two steps is no turn"


def test_requests_that_were_computed_again_are_left_out():
    run = served(TRULY, "paged", decode_blocks=40, host_blocks=0)
    steps = sum(span.kind == "decode" for span in run.timeline.spans)
    assert run.counts["recomputes"] and len(samples.steps(run, True)) < steps


def test_a_fit_finds_the_device_that_made_the_runs():
    runs = [served(TRULY), served(TRULY, "streamed", chunk_tokens=64)]
    found = fitted(CPU, SIZES, runs, pads=True)
    told = calibration(found, SIZES, runs, "smollm2", True, 1.0)
    assert max(told.residuals.values()) < 0.02 and set(told.residuals) == {"passes", "steps", "copies"}
    for name in ("products", "kv", "row_s", "batch_s", "beside_pass", "beside_step", "copying", "handed_off"):
        assert getattr(found.fit, name) == pytest.approx(getattr(TRUE, name), rel=0.15), name
    assert found.fit.turn_s == TRUE.turn_s and "of" in str(told)


def test_a_hand_off_that_seems_to_begin_a_layer_can_be_kept(monkeypatch, tmp_path):
    """So it seems where the machine is busy at the end of passes."""
    passes = samples.passes
    late = lambda run: [work._replace(tail_s=work.tail_s + work.seconds) for work in passes(run)]  # noqa: E731
    monkeypatch.setattr(samples, "passes", late)
    runs = [served(TRULY), served(TRULY, "streamed", chunk_tokens=64)]
    told = calibration(fitted(CPU, SIZES, runs, pads=True), SIZES, runs, "smollm2", True, 1.0)
    told.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json") == told


def test_a_fit_of_too_little_is_refused():
    one = simulate(Config.preset("streamed"), [Request([1] * 9, 1)], hardware="CPU")
    with pytest.raises(EngineError, match="needs 5 steps at least, and 0 were seen"):
        fitted(CPU, SIZES, [one], pads=True)


def test_the_engine_is_calibrated_and_the_twin_serves_as_it_did(tmp_path):
    with opened(small("streamed", prefill_blocks=400, decode_blocks=400, host_blocks=400)) as engine:
        found = calibrate(engine, limit_s=5)
    assert found.model == "tiny, float32" and 0 < found.seconds < 60
    path = tmp_path / "calibration.json"
    found.save(path)
    assert Calibration.load(path) == found
    held = HeldOut("few", "streamed", {}, 4, poisson, 50, Lengths(30), Lengths(6), 1)
    (compared,) = validate(found, tiny(), [held], say=lambda text: None)
    assert [len(r.token_ids) for r in compared.twin.results] == [len(r.token_ids) for r in compared.real.results]
    assert set(compared.errors()) == {"ttft_p50", "ttft_p90", "tpot_p50", "tpot_p90", "tokens_per_s", "H"}
    assert compared.twin.config.replace(link=None) == compared.real.config.replace(link=None)


WHOLE = Calibration("a machine", "smollm2", Hardware(TRULY, CPU, 2), {"steps": 0.01}, {"steps": 9}, 3.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda row: row.update(calibration=2), "no calibration in version 1"),
        (lambda row: row.pop("machine"), "machine"),
        (lambda row: row["hardware"]["prefill"]["fit"].update(products="x"), "products"),
        (lambda row: row["hardware"]["prefill"]["fit"].update(reading=0), "reading"),
        (lambda row: row["hardware"]["decode"].update(link="wire"), "link 'wire' is no preset"),
        (lambda row: row["hardware"].update(count=-1), "count"),
        (lambda row: row.update(residuals={"steps": -1}), "residuals"),
        (lambda row: row.update(more=1), "more"),
    ],
)
def test_a_wrong_calibration_is_refused_in_words(tmp_path, change, words):
    path = tmp_path / "calibration.json"
    WHOLE.save(path)
    row = json.loads(path.read_text())
    change(row)
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(FileError, match=f"line 1.*{words}"):
        Calibration.load(path)


def test_two_calibrations_in_a_file_are_refused(tmp_path):
    path = tmp_path / "empty.json"
    WHOLE.save(path)
    path.write_text(2 * path.read_text())
    with pytest.raises(FileError, match="one line holds a calibration; there are 2"):
        Calibration.load(path)


def test_a_ratio_is_dialled_at_the_predicted_speed():
    asked = [Request([1] * 128, 2)]
    run = simulate(Config.preset("streamed", link=Link.ratio(0.5), layers_per_copy=1), asked, hardware="CPU")
    assert run.overlap(0).hidden == pytest.approx(run.law(0).hidden) == pytest.approx(0.5, abs=0.03)


def test_a_worker_beside_another_is_slower():
    alone = dataclasses.replace(TRULY, fit=dataclasses.replace(TRUE, beside_pass=1.0, beside_step=1.0))
    assert served(alone).metrics().tpot_s.p50 < served(TRULY).metrics().tpot_s.p50
    costs = Predicted.of(Config.preset("split"), Hardware(TRULY, TRULY))
    assert costs.step_ns(4, 100, True) == pytest.approx(1.2 * costs.step_ns(4, 100, False))
    assert costs.pass_ns([(0, 9)], 1, True)[0] == pytest.approx(1.5 * costs.pass_ns([(0, 9)], 1, False)[0], rel=1e-6)


def test_a_world_that_is_done_is_freed_without_the_collector(monkeypatch):
    pools = []
    before(monkeypatch, BlockPool, "__init__", lambda self, *args: pools.append(weakref.ref(self)))
    gc.disable()
    try:
        run = simulate(Config.preset("paged"), [Request([1] * 40, 3)], hardware="CPU")
        assert len(pools) >= 3 and not any(pool() for pool in pools) and run.results[0].token_ids
    finally:
        gc.enable()


def test_a_layer_is_handed_off_before_its_time_is_over():
    """What is left of the last layer is tail: it hides copies, and takes no longer."""
    whole = dataclasses.replace(TRULY, fit=dataclasses.replace(TRUE, handed_off=1.0))
    early, late = (samples.passes(served(device))[0] for device in (TRULY, whole))
    assert early.seconds == pytest.approx(late.seconds) and layer_s(early) == pytest.approx(layer_s(late))
    assert early.lead_s == pytest.approx(0.3 * layer_s(early), rel=1e-3) and late.lead_s == pytest.approx(layer_s(late))
    assert early.tail_s - late.tail_s == pytest.approx(0.7 * layer_s(early), rel=1e-3)


@pytest.mark.parametrize("fields", [TINY, {**TINY, "num_key_value_heads": None}])
def test_a_folder_is_counted_by_its_config(tmp_path, fields):
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert sizes_of(str(tmp_path), "float32") == Sizes.of_config(fields, 4)
    assert sizes_of("tiny", "float32") == Sizes.of(tiny()), "counted as it is made"


@pytest.mark.parametrize(("text", "words"), [("[" * 99_999, "is no config.json"), ("[]", "it holds"), ("{", "is no")])
def test_a_folder_whose_config_is_none_is_refused(tmp_path, text, words):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=words):
        sizes_of(str(tmp_path))


@pytest.mark.parametrize("preset", PRESETS)
def test_the_controller_decides_the_same_over_the_same_events(preset):
    told, again = twin_accuracy.decisions(preset, tiny())
    assert len(told) > 40 and in_lines(told) == in_lines(again)


def test_a_controller_that_hears_something_else_decides_something_else():
    run = served(TRULY)
    same, again, other = (
        in_lines(replay(run.config, log, layers=30, token_bytes=SIZES.token_bytes))
        for log in (run.log, run.log, run.log[:-3])
    )
    assert same == again != other
    assert in_lines(simulate_seed(3).log) == in_lines(simulate_seed(3).log) != in_lines(simulate_seed(4).log)


def test_closed_forms_are_met():
    rows = {row.name: row for row in closed_forms.rows(1500)}
    assert len(rows) == 5 and all(row.met for row in rows.values()), rows


@given(st.integers(1, 40))
def test_a_trace_is_repeated_behind_its_end(count):
    arrivals = [Arrival(0.0, 1, 1), Arrival(2.0, 2, 2), Arrival(5.0, 3, 3)]
    found = _repeated(arrivals, count)
    assert len(found) == count and [a.at_s for a in found] == sorted(a.at_s for a in found)
    assert all(a.at_s == b.at_s + 6.0 for a, b in zip(found[3:], found, strict=False))


def test_recordings_of_a_gpu_are_predicted_that_the_fit_has_not_seen():
    compared = on_record.compared()
    assert len(compared) == 7 and all(each.errors()["tpot_p50"] < 25 for each in compared)
    assert [compared[0].name, compared[-1].name] == ["At c/x 4", "At c/x 0.25"]
    missing = on_record.compared(on_record.recordings.FOLDER / "nowhere")
    assert not missing and "record-gpu" in repr(missing)


def test_the_prediction_is_drawn_over_the_run():
    run = served(TRULY)
    asked = [Request([1] * r.prompt_tokens, len(r.token_ids), r.arrival_ns / 1e9) for r in run.results]
    told = calibration(TRULY, SIZES, [run], "smollm2", True, 1.0)
    compared = Compared("crowd", run, predicted(run, asked, told))
    assert max(compared.errors().values()) == 0
    picture = overlay_picture(compared)
    assert picture.finding.startswith("Crowd: 24 requests; the twin is off by median TTFT 0 %")
    assert "H 0 points" in picture.alt and len(picture.png()) > 5000


def test_the_prediction_shows_rows_that_decode_in_a_pass_above_it():
    config = Config.preset("colocated", model="tiny", chunk_tokens=64)
    run = simulate(config, [Request([1] * 40, 9), Request([1] * 128, 3, 0.1)])
    figure = overlay_picture(Compared("two", run, run)).figure
    drawn = {"prefill": set(), "decode": set()}
    for boxes in figure.axes[0].collections[:4]:
        kind = "prefill" if to_hex(boxes.get_facecolor()[0]).upper() == COLOURS["prefill"] else "decode"
        drawn[kind] |= {round(path.get_extents().height, 2) for path in boxes.get_paths()}
    assert drawn == {"prefill": {0.42}, "decode": {0.14, 0.42}}


def test_the_collector_is_as_it_was_after_a_run():
    for turn in (gc.disable, gc.enable):
        turn()
        served(TRULY)
        assert gc.isenabled() is (turn is gc.enable)


def test_a_replay_says_the_tokens_at_their_times():
    run, told = served(TRULY, "dynamic"), {}
    for _, command in replay(run.config, run.log, layers=30, token_bytes=SIZES.token_bytes):
        if isinstance(command, Emit):
            for request, token in zip(command.requests, command.tokens, strict=True):
                told.setdefault(request, []).append((command.at_ns, token))
    assert told == {r.request: list(zip(r.token_times_ns, r.token_ids, strict=True)) for r in run.results}


def test_a_link_without_a_dial_carries_one_copy_at_a_time():
    run = simulate(Config.preset("streamed"), [Request([1] * 64, 2)] * 3, Speeds(copy_byte=50.0))
    copies = sorted((span.start_ns, span.end_ns) for span in run.timeline.spans if span.kind == "copy")
    assert len(copies) > 30 and all(end <= start for (_, end), (start, _) in zip(copies, copies[1:], strict=False))
