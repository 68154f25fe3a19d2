"""Recordings of one GPU: written by the command, read by notebook 07. Here a CPU stands in, in small sizes."""

import ast
import dataclasses
import gzip
import io
import json
import re
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import nbformat
import pytest
import torch
from typer.testing import CliRunner

from benchmarks.gpu import fixture, notebook, record, sharing
from benchmarks.suites import app
from disagg.course import recorded
from disagg.plan.errors import ConfigError, EngineError, FileError
from disagg.run.gpu import machine
from disagg.show import recordings
from disagg.show.plots.floor_plot import steps_picture
from disagg.show.plots.gap_plot import gaps_beside
from disagg.show.plots.law_plot import dials_picture, ratio
from disagg.show.recordings import HAND_OFF_RUNGS, RUNGS, HandOffTime, HandOffTimes, StepTime, StepTimes
from disagg.show.report import Failed, LeftOut
from disagg.trace.results import Run

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks" / "07_on_a_gpu.ipynb"

on_cpu = pytest.mark.skipif(
    torch.cuda.is_available(), reason="stands in for a GPU where there is none; on a GPU `record-gpu` itself runs"
)


def small_stand():
    return record.make_stand("tiny", lambda text: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """All parts, measured once with the tiny model on the CPU."""
    if torch.cuda.is_available():
        pytest.skip("stands in for a GPU where there is none")
    place = tmp_path_factory.mktemp("recorded") / "new" / "folder"
    done = list(record.record(small_stand(), place))
    assert not [one for one in done if isinstance(one, LeftOut)], done
    assert sorted(path.name for path in place.iterdir()) == sorted(path.name for path in done)
    return place


# ---- what is written and read ----------------------------------------------------------------------------------------


def test_every_part_is_written_and_read_back(folder):
    steps, timelines, staged = (read(folder) for read in (recordings.steps, recordings.timelines, recordings.staged))
    assert [(time.rung, time.rows) for time in steps.times] == [(rung, rows) for rung in RUNGS for rows in (1, 2)]
    passes = recordings.hand_off(folder)
    assert [(time.rung, time.tokens) for time in passes.times] == [(r, n) for r in HAND_OFF_RUNGS for n in (32, 256)]
    assert all(time.without_s > 0 and time.exposed_s >= 0 and time.count == 2 for time in passes.times)
    assert steps.copy > 0 and all(time.seconds > 0 and time.count >= 4 for time in steps.times)
    assert list(timelines) == ["Colocated", "Small chunks", "Streams", "SM split"]
    assert {run.config.colocated for run in timelines.values()} == {True, False}
    assert list(staged) == [0.0, 4.0] and all(run.law(0) for run in staged.values())
    asked = [[(r.prompt_tokens, len(r.token_ids), r.finish_reason) for r in run.results] for run in timelines.values()]
    assert asked[0] == asked[1] == asked[2] == [(32, 40, "length")] * 8 + [(256, 4, "length")] * 4
    assert staged[4.0].overlap(0).transfer_s > staged[0.0].overlap(0).transfer_s, "a dial is a hop's least time"


def test_a_recording_names_what_its_times_depend_on_and_nothing_private(folder):
    for read in (recordings.steps, recordings.hand_off, recordings.timelines, recordings.staged):
        part = read(folder)
        assert recordings.whence(part).startswith(f"Recorded: tiny on no GPU, torch {torch.__version__}")
    for path in folder.iterdir():
        text = gzip.decompress(path.read_bytes()).decode()
        assert not re.search(r'"[^"]*/(home|root|tmp|work)/', text), path.name
    assert sum(path.stat().st_size for path in folder.iterdir()) < 100_000


def test_stored_recordings_can_be_read_and_come_from_a_gpu():
    found = sorted(recordings.FOLDER.glob("gpu_*"))
    tables = {recordings.STEPS_FILE: StepTimes, recordings.HAND_OFF_FILE: HandOffTimes}
    assert len([path for path in found if path.name != recordings.HAND_OFF_FILE]) == 6 + 6 + 8, (
        "steps, five arrangements, six splits and eight dials; `python -m benchmarks record-gpu` on a GPU"
    )
    assert sum(path.stat().st_size for path in found) <= 2_000_000
    for path in found:
        holds = tables.get(path.name, Run).load(path)
        assert re.match(r"NVIDIA .+, driver \S+, torch \d", holds.machine), f"{path.name}: {holds.machine}"


@on_cpu
def test_a_part_may_be_asked_for_alone(tmp_path):
    done = list(record.record(small_stand(), tmp_path, "staged"))
    assert [path.name for path in done] == ["gpu_staged_0.jsonl.gz", "gpu_staged_4.jsonl.gz"]
    assert not recordings.steps(tmp_path) and not recordings.timelines(tmp_path) and recordings.staged(tmp_path)


@on_cpu
def test_written_again_a_file_is_replaced(tmp_path):
    (tmp_path / recordings.STEPS_FILE).write_bytes(b"old")
    assert [path.name for path in record.record(small_stand(), tmp_path, "steps")] == [recordings.STEPS_FILE]
    assert recordings.steps(tmp_path).model == "tiny"


@on_cpu
def test_what_fails_leaves_the_others_standing(tmp_path, monkeypatch, capsys):
    def fails(stand):
        raise EngineError("out of memory")

    monkeypatch.setattr(record, "step_times", fails)
    monkeypatch.setattr(sharing, "ARRANGEMENTS", {"colocated": ("colocated", 1, {}), "sm_split": ("steamed", 1, {})})
    done = list(record.record(small_stand(), tmp_path, "timelines, steps"))
    assert done[0] == Failed("steps", "EngineError: out of memory") and "Traceback" in capsys.readouterr().err
    assert done[1].name == "gpu_colocated.jsonl.gz"
    assert done[2].name == "sm_split" and "preset 'steamed' is unknown" in done[2].reason
    assert repr(recordings.timelines(tmp_path)).startswith(
        "gpu_chunked.jsonl.gz, gpu_streams.jsonl.gz, gpu_sm_split.jsonl.gz are"
    )


@on_cpu
def test_rungs_switch_what_they_say(monkeypatch):
    """The model is loaded with projections as they are, and once more joined."""
    loads, configs = [], []
    load, engine_of = fixture.load_model, record.decode_steps.engine_of

    def loading(*args, **options):
        loads.append(options["join_projections"])
        return load(*args, **options)

    def building(stand, **changes):
        configs.append({**changes, "joined": engine_of(stand, **changes).config.join_projections})
        return engine_of(stand, **changes)

    monkeypatch.setattr(fixture, "load_model", loading)
    monkeypatch.setattr(record.decode_steps, "engine_of", building)
    made = small_stand()
    made.scale = dataclasses.replace(made.scale, batches=(1,))
    record.step_times(made)
    made.close()
    assert loads == [False, True]
    assert [config["joined"] for config in configs] == [False, False, False, True, True]
    assert [config["compile"] for config in configs] == [False, True, True, True, True]
    assert [switches["graphs"] for switches in record.RUNGS.values()] == [False, False, True, True, True]
    assert [name for name, switches in record.RUNGS.items() if switches["fused_decode"]] == ["fused"]
    assert {name: on["graphs"] for name, on in record.HAND_OFF_RUNGS.items()} == {"launched": False, "captured": True}
    assert tuple(record.RUNGS) == RUNGS and tuple(record.HAND_OFF_RUNGS) == HAND_OFF_RUNGS
    assert set(sharing.ARRANGEMENTS) == {*recordings.ARRANGEMENTS, "turns"}


def test_a_folder_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="can't be made"):
        list(record.record(small_stand(), tmp_path / "file" / "data"))


def test_parts_have_names():
    one, two = record.ONE_GPU, record.TWO_GPUS
    assert list(record.chosen(one, None)) == ["steps", "hand_off", "timelines", "splits", "staged"]
    assert list(record.chosen(one, "staged,steps")) == ["steps", "staged"]
    assert list(record.chosen(two, None)) == list(recordings.PAIR)
    with pytest.raises(
        ConfigError, match="--only step: no such part; known: steps, hand_off, timelines, splits, staged"
    ):
        record.chosen(one, "step")


def test_a_run_of_a_gpu_is_read_where_there_is_none(folder, tmp_path):
    run = recordings.timelines(folder)["SM split"]
    devices = dict(prefill_device="cuda:0", decode_device="cuda:0", sm_split=32, graphs=True, dtype="bfloat16")
    run.config = run.config.replace(model="random-llama3-8b", **devices, link=30e9)
    run.save(tmp_path / "run.jsonl.gz")
    again = Run.load(tmp_path / "run.jsonl.gz")
    assert again.config == run.config and again.timeline.spans == run.timeline.spans


# ---- times of steps --------------------------------------------------------------------------------------------------


def made_up(rungs=RUNGS) -> StepTimes:
    """Round numbers: floors of 1 and 2 ms, and steps of 8, 4, 2, 1.5 and 1.25 floors."""
    times = [
        StepTime(rung, rows, over * floor_ms / 1e3, over * floor_ms / 1e3 + 1e-4, floor_ms * 10**9, 1000.0, 40)
        for rung, over in zip(rungs, (8, 4, 2, 1.5, 1.25), strict=False)
        for rows, floor_ms in ((1, 1), (64, 2))
    ]
    return StepTimes("a machine", "tiny", 1e12, 1e14, 5e10, 5e10, tuple(times))


def test_times_come_back_as_they_were(tmp_path):
    steps = made_up()
    for name in ("a.json", "a.json.gz"):
        steps.save(tmp_path / name)
        assert StepTimes.load(tmp_path / name) == steps
    assert steps.floor_s(64) == pytest.approx(0.002) and steps.over_floor("graph", 64) == pytest.approx(2)
    assert steps.batches == [1, 64]


def test_a_recording_of_steps_may_lack_the_last_rung_only(tmp_path):
    four, three = made_up(RUNGS[:4]), made_up(RUNGS[:3])
    four.save(tmp_path / "a.json")
    assert StepTimes.load(tmp_path / "a.json") == four and four.rungs == [*RUNGS[:4]]
    assert steps_picture(four).finding.startswith("1 row: the floor is 1 ms; in floors, eager 8.00, compiled 4.00")
    assert "joined 1.50. 64 rows" in steps_picture(four).finding
    with pytest.raises(FileError, match="times must hold each of eager, compiled, graph, joined once"):
        three.save(tmp_path / "b.json")
    assert not (tmp_path / "b.json").exists()


def made_up_passes() -> HandOffTimes:
    """Passes of 4 and 2 ms that a hand-off makes 25 and 5 % longer."""
    rungs = {"launched": (0.004, 0.005), "captured": (0.002, 0.0021)}
    times = [
        HandOffTime(rung, tokens, *both, 0.9, 1e-4, 2e-5, 5) for rung, both in rungs.items() for tokens in (32, 64)
    ]
    return HandOffTimes("a machine", "tiny", tuple(times))


def test_times_of_passes_come_back_as_they_were(tmp_path):
    passes = made_up_passes()
    passes.save(tmp_path / recordings.HAND_OFF_FILE)
    assert recordings.hand_off(tmp_path) == passes
    assert [time.slower for time in passes.times] == pytest.approx([0.25, 0.25, 0.05, 0.05])
    most = passes.slowed_most(512)
    assert (most.rung, most.tokens) == ("launched", 64)
    assert passes.table().splitlines()[3] == "   64 tokens | captured |   2.00 ms, handed off   2.10 ms: +5.0%"


WRONG_PASSES = {
    "steps": (lambda row: row.update(recording="steps"), "no recording of hand_off in version 1"),
    "a ceiling": (lambda row: row.update(copy=1e12), "field 'copy' is unknown"),
    "no object": (lambda row: row["times"].append(1), "times must be a list of objects"),
    "more than all": (lambda row: row["times"][0].update(hidden=1.5), "hidden must be a number, 1 or less"),
    "before token 1": (lambda row: row["times"][0].update(exposed_s=-1), "exposed_s must be a number, 0 or more"),
    "no rung": (lambda row: row["times"][0].update(rung="torn"), "each of launched, captured once for each number of"),
    "a size lacks": (lambda row: row["times"].pop(), "once for each number of tokens"),
}


@pytest.mark.parametrize("what", WRONG_PASSES)
def test_wrong_times_of_passes_are_refused(tmp_path, what):
    change, words = WRONG_PASSES[what]
    (tmp_path / "a.json").write_bytes(broken(change, made_up_passes()))
    with pytest.raises(FileError, match=re.escape(words)):
        HandOffTimes.load(tmp_path / "a.json")


def broken(change, times=None) -> bytes:
    times = times or made_up()
    row = json.loads(json.dumps({"recording": times.KIND, "version": 1, **dataclasses.asdict(times)}))
    change(row)
    return json.dumps(row).encode() + b"\n"


WRONG = {
    "a field is unknown": (lambda row: row.update(host="x"), "field 'host' is unknown"),
    "a field is missing": (lambda row: row.pop("copy"), "field 'copy' is missing"),
    "another recording": (lambda row: row.update(recording="rows"), "no recording of steps in version 1"),
    "another version": (lambda row: row.update(version=2), "no recording of steps in version 1"),
    "a time is text": (lambda row: row["times"][0].update(seconds="1"), "seconds must be a number above 0"),
    "a rung stands twice": (lambda row: row["times"].append(row["times"][0]), "times must hold each of eager"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_times_are_refused(tmp_path, what):
    change, words = WRONG[what]
    (tmp_path / "a.json").write_bytes(broken(change))
    with pytest.raises(FileError, match=re.escape(words)):
        StepTimes.load(tmp_path / "a.json")


@pytest.mark.parametrize("content", [b"", b"{}\n{}\n", b"[1]\n", b'{"recording": ', b"\x1f\x8b\x00"])
def test_what_is_no_recording_is_refused(tmp_path, content):
    (tmp_path / "a.json.gz").write_bytes(content)
    (tmp_path / "a.json").write_bytes(content)
    for name in ("a.json.gz", "a.json"):
        with pytest.raises(FileError, match="a.json"):
            StepTimes.load(tmp_path / name)


# ---- what is missing -------------------------------------------------------------------------------------------------


def test_what_is_missing_says_which_command_makes_it(tmp_path):
    for part in ("steps", "hand_off", "timelines", "staged"):
        missing = getattr(recordings, part)(tmp_path / "nowhere")
        assert not missing and f"`python -m benchmarks record-gpu --only {part}`" in repr(missing)
        assert recordings.whence(missing) == repr(missing)


def test_other_files_are_left_alone(tmp_path):
    for dial in ("nan", "-1", "1e999", "1e5", "..%2f", ""):
        (tmp_path / recordings.staged_file(dial)).write_bytes(b"\x80\x04")
    assert not recordings.staged(tmp_path)


# ---- the command -----------------------------------------------------------------------------------------------------


def asked(*arguments: str):
    result = CliRunner().invoke(app, ["record-gpu", *arguments], env={"COLUMNS": "200"})
    return result.exit_code, " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.output).split())


def test_help_names_the_parts():
    code, text = asked("--help")
    assert (
        code == 0 and "steps, hand_off, timelines, splits, staged" in " ".join(text.split()) and "figures/data" in text
    )


@on_cpu
def test_without_a_gpu_the_command_says_what_it_needs(tmp_path):
    code, text = asked("--out", str(tmp_path / "data"))
    assert code == 2 and "needs an NVIDIA GPU that torch can use" in text and torch.__version__ in text
    assert not (tmp_path / "data").exists()


def test_an_unknown_shape_lists_the_known_ones():
    code, text = asked("--shape", "tiny")
    assert code == 2 and "'tiny' is unknown; known: llama3-8b" in text


@on_cpu
def test_the_command_tells_what_it_wrote_and_what_is_left_out(monkeypatch, tmp_path):
    def some(stand, folder, only):
        path = folder / "gpu_steps.json.gz"
        path.write_bytes(b"x" * 2000)
        yield path
        if only is None:
            yield LeftOut("staged", "no pinned memory")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(record, "make_stand", lambda *arguments: None)
    monkeypatch.setattr(record, "record", some)
    code, text = asked("--out", str(tmp_path), "--only", "steps")
    assert code == 0 and "gpu_steps.json.gz (2 kB)" in text
    code, text = asked("--out", str(tmp_path))
    assert code == 1 and "left out: staged: no pinned memory" in text


def test_the_command_needs_no_notebook_packages():
    """A machine with a GPU may have torch and little else."""
    program = """
import sys
for name in ("ipywidgets", "jupyter", "IPython", "nbformat", "nbconvert", "ipykernel", "gguf", "anywidget", "psutil"):
    sys.modules[name] = None
import disagg.cli.main, disagg.show.recordings
from benchmarks.gpu import record
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=100)
    assert done.returncode == 0, done.stderr


def test_a_gpu_is_named_with_driver_and_torch(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H200")
    done = subprocess.CompletedProcess([], 0, stdout="580.1.2\n580.1.2\n")
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: done)
    assert machine.gpu_in_words() == f"NVIDIA H200, driver 580.1.2, torch {torch.__version__}"

    def absent(*arguments, **options):
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(subprocess, "run", absent)
    assert "driver unknown" in machine.gpu_in_words()


# ---- what is drawn ---------------------------------------------------------------------------------------------------


def test_steps_are_bars_beside_their_floor():
    picture = steps_picture(made_up())
    assert picture.finding == (
        "1 row: the floor is 1 ms; in floors, eager 8.00, compiled 4.00, graph 2.00, joined 1.50, fused 1.25. "
        "64 rows: the floor is 2 ms; in floors, eager 8.00, compiled 4.00, graph 2.00, joined 1.50, fused 1.25."
    )
    panels = picture.figure.axes
    assert [[bar.get_width() for bar in axes.patches] for axes in panels] == [
        [1, 8, 4, 2, 1.5, 1.25],
        [2, 16, 8, 4, 3, 2.5],
    ]
    picture.figure.canvas.draw()
    for axes in panels:
        for text in axes.texts:
            assert text.get_window_extent().x1 <= axes.get_window_extent().x1 + 1, f"{text.get_text()} is cut off"


def test_dials_stand_beside_their_law(folder):
    runs = recordings.staged(folder)
    picture = dials_picture(runs)
    law, measured = picture.figure.axes[0].lines
    faster = sorted(runs.values(), key=ratio)
    assert list(measured.get_xdata()) == [ratio(run) for run in faster], "the faster link stands to the right"
    assert list(measured.get_ydata()) == [100 * run.overlap(0).hidden for run in faster]
    assert list(law.get_ydata()) == [100 * run.law(0).hidden for run in faster]
    words = r"H is .* % at c/x = .* and .* % at .*; 2 runs, at most .* percentage points off the law\."
    assert re.fullmatch(words, str(picture))


def test_gaps_are_parted_by_others_prefill(folder):
    """By hand: two readers with a token every 10 ns; another request's pass from 25 to 38, the readers' own at 0."""
    run = recordings.timelines(folder)["Streams"]
    readers = [dataclasses.replace(run.results[i], request=i, token_times_ns=list(range(0, 70, 10))) for i in (0, 1)]
    span = next(span for span in run.timeline.spans if span.kind == "prefill")
    passes = (((0, 1), 0, 5), ((2,), 25, 38))
    run.timeline.spans = [span._replace(requests=ids, start_ns=at, end_ns=end) for ids, at, end in passes]
    run.results[:] = [*readers, dataclasses.replace(run.results[8], request=2)]
    beside, alone = gaps_beside(run, [0, 1])
    assert beside == [10e-9] * 4 and alone == [10e-9] * 6  # per reader: 20–30, 30–40; 10–20, 40–50, 50–60


# ---- live, and the slider --------------------------------------------------------------------------------------------


@on_cpu
def test_live_says_that_there_is_no_gpu():
    assert repr(notebook.live("steps")) == (
        "No GPU that torch can use is at hand here; what is above comes from a recording."
    )
    with pytest.raises(ValueError, match="'step' is unknown; known: steps, hand_off, timelines, staged"):
        notebook.live("step")


@on_cpu
@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("steps", "2 rows: the floor"),
        ("hand_off", "captured |"),
        ("timelines", "SM split: 12 requests"),
        ("staged", "H is "),
    ],
)
def test_live_measures_and_draws(monkeypatch, part, words):
    monkeypatch.setattr(notebook, "at_hand", lambda: True)
    assert words in str(notebook.live(part, shape="tiny"))


@on_cpu
def test_live_says_what_went_wrong(monkeypatch):
    monkeypatch.setattr(notebook, "at_hand", lambda: True)
    monkeypatch.setattr(record, "step_times", lambda stand: (_ for _ in ()).throw(EngineError("out of memory")))
    assert repr(notebook.live("steps", shape="tiny")) == "EngineError: out of memory"


def test_an_instrument_of_dials_steps_through_what_was_recorded(folder):
    """Each position is one recording at the c/x that it measured; between two of them there is none."""
    runs = recordings.staged(folder)
    scene = recorded.dials(runs)
    speeds = scene.controls["speed"].values
    assert speeds == sorted(speeds) and len(speeds) == len(runs), "the faster link stands to the right"
    for speed in speeds:
        said, _ = scene.answer(scene.run(speed=speed), {"speed": speed})
        run = scene.run(speed=speed)
        assert speed == pytest.approx(ratio(run), rel=0.01) and run in list(runs.values())
        facts = dict(said["facts"])
        assert facts["H by the law"] == f"{run.law(0).hidden:.1%}"
        assert facts["link"] == ("pinned memory as it is" if run is runs[0.0] else "held back to c/x = 0.25")
        assert said["curve"]["points"] == [["this run", [speed, run.overlap(0).hidden]]]
    with pytest.raises(ConfigError, match="speed must be one of"):
        scene.settings({"speed": (speeds[0] + speeds[1]) / 2})
    assert f"recorded on {runs[0.0].machine.split(',')[0]}" in scene.title


def test_an_instrument_of_a_shared_gpu_shows_gaps_and_what_prefill_keeps(folder):
    runs = recordings.timelines(folder)
    scene = recorded.sharing(runs)
    assert list(scene.controls["arrangement"].options) == list(runs) == list(recordings.ARRANGEMENTS.values())
    turns = recorded.long_prompts_s(runs["Colocated"])
    for name, run in runs.items():
        said, _ = scene.answer(scene.run(arrangement=name), {"arrangement": name})
        assert dict(said["facts"])["prefill kept"] == f"{turns / recorded.long_prompts_s(run):.0%}"
        gap, *prompts = said["brackets"]
        waits = [wait for result in run.results[: recorded.READERS] for wait in result.itl_s[1:]]
        assert (gap["end"] - gap["start"]) / 1e9 == pytest.approx(max(waits))
        assert [one["place"] for one in prompts] == ([] if name in ("Colocated", "Small chunks") else ["prefill 0"])
    assert scene.run(arrangement="Streams").timeline.spans == runs["Streams"].timeline.spans


def test_an_instrument_of_splits_steps_through_what_was_recorded(folder):
    run = recordings.timelines(folder)["SM split"]
    runs = {16.0: run, 32.0: run, 48.0: run}
    scene = recorded.splits(runs)
    said, _ = scene.answer(scene.run(sms=32), {"sms": 32})
    assert scene.run(sms=32) is run and scene.controls["sms"].values == [16, 32, 48]
    assert scene.settings() == {"sms": 32}, "the split of the chapter's four ways"
    assert dict(said["facts"])["long prompts read in"] == f"{recorded.long_prompts_s(run):.2f} s"
    assert said["curve"]["points"] == [["32 SMs", [32, 1.0]]], "all are the best"


# ---- the notebook ----------------------------------------------------------------------------------------------------


def run_cells() -> dict[str, str]:
    """What each code cell says: what it prints, and the sentence of its last expression."""
    cells = [cell for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code"]
    world, said = {"__name__": "__main__"}, {}
    for cell in cells:
        body = ast.parse(cell.source).body
        last = ast.Expression(body.pop().value) if isinstance(body[-1], ast.Expr) else None
        with redirect_stdout(io.StringIO()) as out:
            exec(compile(ast.Module(body, []), cell.id, "exec"), world)
            value = eval(compile(last, cell.id, "eval"), world) if last else None
        said[cell.id] = out.getvalue() + ("" if value is None else repr(value))
    return said


DRAWN = {
    "rungs": "How many floors does an eager step of one row take? You guessed", "opening": "12 requests",
    "hand-off": "on the worse rung? You guessed", "shared": "over gaps alone? You guessed",
    "sharing": "One GPU for two phases, recorded on", "dial": "Two hops through pinned memory, recorded on",
    "dials": "asked for 0.250",
}  # fmt: skip


@on_cpu
def test_the_notebook_runs_from_recordings(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(recordings, "FOLDER", folder)
    monkeypatch.chdir(tmp_path)
    said = run_cells()
    assert said["whence"].count("Recorded: tiny") == 3
    for cell, words in DRAWN.items():
        assert words in said[cell], cell
    assert not [cell for cell, text in said.items() if "record-gpu" in text]


@on_cpu
def test_the_notebook_runs_without_any(monkeypatch, tmp_path):
    monkeypatch.setattr(recordings, "FOLDER", tmp_path)
    monkeypatch.chdir(tmp_path)
    said = run_cells()
    assert said["whence"].count("record-gpu --only") == 3
    for cell in DRAWN:
        assert said[cell].endswith("measures and writes this part."), cell
    assert "✗ decode_sms: not yet." in said["exercise-split"]


def test_the_notebook_is_named_where_the_others_are():
    for page in ("README.md", "docs/teaching.md"):
        assert "| `07_on_a_gpu` |" in (ROOT / page).read_text()
    assert "`python -m benchmarks record-gpu`" in (ROOT / "docs/commands.md").read_text()
    assert (ROOT / "notebooks" / "solutions" / NOTEBOOK.name).exists()


# ---- two GPUs --------------------------------------------------------------------------------------------------------


@on_cpu
def test_two_workers_are_recorded_for_three_notebooks(tmp_path):
    done = list(record.record(record.make_stand("tiny", lambda text: None, pair=True), tmp_path))
    names = [f"pair_{name}.jsonl.gz" for part in recordings.PAIR.values() for name in part]
    assert [path.name for path in done] == names
    found = {part: recordings.pair(part, tmp_path) for part in recordings.PAIR}
    assert list(found["crowd"]) == ["Split", "Two colocated"]
    answers = [[len(result.token_ids) for result in run.results] for run in found["crowd"].values()]
    assert answers[0] == answers[1] == [40] * 8 + [4] * 4
    assert found["routes"]["Direct"].law(0) and found["routes"]["Staged"].law(0)
    assert found["paged"]["Paged"].counts["spills"] >= 1
    assert sum(path.stat().st_size for path in done) < 100_000


def test_what_two_gpus_would_record_is_reported(tmp_path):
    words = repr(recordings.pair("crowd", tmp_path))
    assert words.startswith("pair_split.jsonl.gz, pair_two_colocated.jsonl.gz are not in figures/data.")
    assert "with two NVIDIA GPUs, `python -m benchmarks record-gpu --two --only crowd` measures" in words
