"""The bug lab: each bug is caught by its own detector, the shipped code by none, and nothing stays replaced."""

import inspect
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import nbformat
import pytest
import torch

from benchmarks.robustness import buglab as bench
from disagg.course.buglab.bugs import MOMENTS, bug, bugs, run_bug
from disagg.course.buglab.lab_worlds import SPEEDS, LabWorld, Listener, Played, Simulated, Streams
from disagg.course.buglab.mysteries import CASES, SUSPECTS, case_of, mystery, story
from disagg.course.buglab.replays import marks, replays, run_of
from disagg.course.chapters import ch08_bug_lab as chapter
from disagg.show.plots.timeline_plot import timeline_picture

NAMES = list(bugs())
EACH = pytest.mark.parametrize("name", NAMES)
SIMULATED = [name for name, one in bugs().items() if isinstance(one.scene, Simulated)]
STREAMS = [name for name, one in bugs().items() if isinstance(one.scene, Streams)]


# ---- the ten ---------------------------------------------------------------------------------------------------------


def test_there_are_ten_and_each_detector_they_need_is_named():
    assert len(NAMES) == 10
    wanted = {"Digest": 1, "Landing": 2, "Watchdog": 2, "InUse": 3, "Ledger": 1, "OneEnd": 1}
    found = [one.detector for one in bugs().values()]
    assert {name: found.count(name) for name in found} == wanted


@EACH
def test_its_own_detector_catches_it(name):
    found = run_bug(name)
    assert found.caught_by == bugs()[name].detector, found.breach or found.error
    assert found.facts, "a learner sees something"


@EACH
def test_the_shipped_code_is_silent_on_the_same_scene(name):
    played = bugs()[name].scene.play()
    assert played.breach is None and played.error is None, played


@pytest.mark.parametrize("seed", range(25))
def test_the_shipped_code_is_silent_when_a_seed_moves_the_scene(seed):
    for name in SIMULATED:
        played = bugs()[name].scene.play(seed=seed)
        assert played.breach is None and played.error is None, (name, played.breach, played.error)


def test_seven_of_ten_look_like_success():
    silent = [name for name in NAMES if run_bug(name).silent]
    assert silent == ["event first", "parked early", "rows let go", "partial", "freed early", "counted", "last block"]


def test_blocks_of_a_row_in_a_mixed_pass_are_anothers_before_the_pass_has_ended():
    run = run_bug("rows let go").run
    pass_ = next(span for span in run.timeline.spans if span.kind == "prefill" and span.place == "decode 0")
    given = next(move for move in run.timeline.moves if move.pool == "decode 0" and move.owner == 2)
    assert pass_.start_ns < given.at_ns < pass_.end_ns and 0 in given.blocks
    assert any(span.kind == "decode" and span.start_ns == pass_.start_ns for span in run.timeline.spans), "it is mixed"


def test_a_prompt_is_computed_over_what_is_still_being_parked():
    run = run_bug("parked early").run
    second = [move for move in run.timeline.moves if move.pool == "prefill 0" and move.owner == 2][0]
    parked = [move for move in run.timeline.moves if move.pool == "host" and move.owner == 1 and move.state == "used"][
        0
    ]
    assert second.at_ns < parked.at_ns and {placed.way for placed in run.placements} == {"fetch"}


def test_the_deadlock_is_printed_as_a_cycle():
    summary = run_bug("two-sided").breach.summary
    assert "cycle: request 1 → request 2 → request 1" in summary


@EACH
def test_a_simulated_bug_looks_the_same_every_time(name):
    assert run_bug(name).facts == run_bug(name).facts


@EACH
def test_a_bugs_facts_are_complete(name):
    one = bugs()[name]
    assert one.threads and one.story.endswith(".") and one.symptom.endswith(".")
    assert one.edge == f"{MOMENTS[one.before]} → {MOMENTS[one.after]}"
    for thread in one.threads:
        assert thread.split()[0].rstrip(",").count("/") == 1, "owner/name, and a number or a file"
    assert one.detector not in one.symptom


# ---- replaced, and put back -----------------------------------------------------------------------------------------


@EACH
def test_a_replacement_is_short(name):
    assert len(inspect.getsource(bugs()[name].replacement).splitlines()) <= 15


@EACH
def test_the_method_is_the_shipped_one_again(name):
    """Also after an exception, and where one bug stands inside another."""
    one = bugs()[name]
    shipped = one.owner.__dict__[one.method]
    with bug(name) as opened:
        assert opened is one and one.owner.__dict__[one.method] is one.replacement
    assert one.owner.__dict__[one.method] is shipped
    with pytest.raises(KeyboardInterrupt), bug(name):
        raise KeyboardInterrupt
    assert one.owner.__dict__[one.method] is shipped
    with bug(name), bug("counted"), bug(name):
        pass
    assert one.owner.__dict__[one.method] is shipped


def test_an_unknown_bug_lists_the_known_ones():
    words = "there is no bug 'freed late'; known: event first, parked early"
    with pytest.raises(ValueError, match=words), bug("freed late"):
        pass


def test_no_method_is_replaced_by_importing_the_lab():
    for one in bugs().values():
        assert one.owner.__dict__[one.method].__module__ == one.owner.__module__


# ---- scenes ----------------------------------------------------------------------------------------------------------


def test_a_scene_without_detectors_breaks_nothing():
    with bug("freed early") as one:
        played = one.scene.play(watched=False)
    assert played.breach is None and played.error is None
    assert [result.finish_reason for result in played.run.results] == ["cancelled", "length"]


def test_a_controller_goes_on_where_the_violation_is_kept():
    with bug("freed early") as one:
        world = LabWorld(one.scene, watched=False, seed=None)
        listener = Listener(world.controller, SPEEDS.layers, keeps=True)
        world.run()
    assert listener.violation.detector == "InUse"
    assert [result.finish_reason for result in world.results.values()] == ["cancelled", "length"]


@pytest.mark.parametrize("seed", [None, *range(12)])
@pytest.mark.parametrize("route", ["direct", "staged"])
def test_shipped_streams_are_right_in_every_order_that_the_edges_allow(route, seed):
    played = Streams(route).play(seed=seed)
    assert played.breach is None, played
    assert len(played.facts) == 3 and all("the bytes that left" in fact for fact in played.facts)
    assert not any("other bytes" in fact for fact in played.facts)


@pytest.mark.parametrize("name", STREAMS)
def test_streams_leave_no_thread_and_no_stand_in(name):
    before = threading.active_count(), torch.cuda.Event, torch.cuda.stream, torch.zeros
    run_bug(name)
    assert (threading.active_count(), torch.cuda.Event, torch.cuda.stream, torch.zeros) == before


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_a_row_a_bug_and_one_for_the_shipped_code(tmp_path):
    path = tmp_path / "rows.json"
    command = [sys.executable, "-m", "benchmarks", "buglab", "--seeds", "2", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["name"]: row for row in json.loads(path.read_text())["rows"]}
    assert list(rows) == [*(f"caught[{name}]" for name in NAMES), "clean_breaches"]
    assert all(rows[f"caught[{name}]"]["value"] == 1 and rows[f"caught[{name}]"]["bar"] == "≥ 1" for name in NAMES)
    clean = rows["clean_breaches"]
    assert (clean["value"], clean["bar"], clean["n"]) == (0, "≤ 0", 2)


def test_another_detector_does_not_count(monkeypatch):
    outcome = run_bug("counted")
    outcome.breach.detector = "Landing"
    monkeypatch.setattr(bench, "run_bug", lambda name: outcome)
    assert {row.value for row in bench.caught_rows(lambda text: None) if row.name == "caught[counted]"} == {0.0}


def test_a_violation_by_the_shipped_code_is_counted(monkeypatch):
    broken = lambda self, seed: Played(None, None, "AssertionError: why" if seed == 1 else None)  # noqa: E731
    for kind in (Simulated, Streams):
        monkeypatch.setattr(kind, "play", broken)
    row = bench.clean_row(lambda text: None, 3)
    assert (row.value, row.n, row.met) == (len(SIMULATED), 3, False)
    assert "seed 1, partial: AssertionError: why" in row.note


# ---- the chapter -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", chapter.EXERCISES, ids=lambda task: task.name)
def test_a_case_of_the_chapter_is_a_bug_of_the_lab_and_hides_its_answer(task):
    answer = task.answer("bug")
    assert answer == case_of(task.name[-1])
    words = task.verdict(lambda asked: "nobody")[1]
    assert "another answer is expected" in words and not any(name in words for name in NAMES)
    for mistake, hint in task.wrong:
        assert answer not in hint and mistake("bug") in NAMES
        assert {mistake("before"), mistake("after")} <= set(MOMENTS)


def test_the_story_is_shown_after_a_solution():
    task = chapter.EXERCISES[0]
    told = story("a", task.answer)
    assert "Table.release" in told and "TensorRT-LLM #12542" in told
    assert story("a", lambda asked: "nobody") == "Solve case A first: its story names the bug."


@pytest.mark.parametrize("letter", CASES)
def test_a_mystery_names_neither_bug_nor_detector(letter):
    shown, one = str(mystery(letter)), bugs()[case_of(letter)]
    assert shown.startswith(f"Case {letter}. {one.symptom}") and 2 <= len(shown.splitlines()) <= 12
    for name in (one.detector, one.name, one.replacement.__name__):
        assert not re.search(rf"\b{name}\b", shown), name


def test_an_unknown_case_lists_the_known_ones():
    with pytest.raises(ValueError, match="there is no case 'Z'; there are A, B, C, D, E, F"):
        mystery("Z")


def answers() -> dict:
    return {task.name: task.answer for task in chapter.EXERCISES}


@pytest.mark.parametrize("letter", CASES)
def test_a_replay_brackets_the_symptom_and_after_the_solution_the_edge(letter):
    """Until then neither the facts nor a bracket name the edge; afterwards one bracket is new."""
    closed, opened = replays(), replays(**{f"case_{letter.lower()}": answers()[f"case_{letter.lower()}"]})
    run, edge = run_of(letter), bugs()[case_of(letter)].edge
    before, after = (scene.answer(scene.run(case=letter), {"case": letter})[0] for scene in (closed, opened))
    assert (
        dict(before["facts"])["the missing edge"] == "not found yet"
        and dict(after["facts"])["the missing edge"] == edge
    )
    assert before["brackets"] == marks(letter, run) and after["brackets"] == marks(letter, run, found=True)
    fresh = [mark for mark in after["brackets"] if mark not in before["brackets"]]
    assert len(fresh) == 1 and before["brackets"], "the edge is one bracket, and the symptom is always there"
    rows = {span.place for span in run.timeline.spans}
    assert all(mark["place"] in rows and 0 <= mark["start"] <= mark["end"] for mark in after["brackets"])


def test_the_edges_stand_where_the_facts_say():
    """Case A: the blocks were free at 20 ms, and the last copy into them ended at 26.1; C: decode began at 34.1 ms."""
    edge = {letter: marks(letter, run_of(letter), found=True)[-1] for letter in CASES}
    assert (edge["A"]["start"], edge["A"]["end"]) == (20_000_000, 26_100_000)
    assert (edge["C"]["start"], edge["C"]["end"]) == (34_100_000, 42_100_000)
    assert edge["B"]["start"] == 26_100_000, "where the copy that failed would have ended"


def test_a_second_answer_that_is_true_as_well_hears_which_edge_is_meant():
    hints = {
        "case_c": ("counted", "all landed", "hand-off whole"),
        "case_f": ("last block", "all landed", "decode starts"),
    }
    for task in chapter.EXERCISES:
        if task.name in hints:
            given = dict(zip(("bug", "before", "after"), hints[task.name], strict=True))
            found = task.verdict(given.__getitem__)
            assert not found.right and "that edge was broken as well" in found.words


def test_the_chapter_names_all_suspects_and_moments():
    cells = nbformat.read(Path(__file__).parent.parent / "notebooks" / "08_bug_lab.ipynb", 4).cells
    table = next(cell.source for cell in cells if cell.id == "moments")
    assert list(SUSPECTS) == NAMES and all(f"| `{name}` | {words} |" in table for name, words in MOMENTS.items())


def test_a_picture_draws_each_mark_and_says_so():
    """An instant is a line through its row, a stretch a bracket over it."""
    run = run_of("A")
    picture = timeline_picture(run, window_ms=(0, 70), marks=marks("A", run, found=True))
    instant, stretch = (list(line.get_xdata()) for line in picture.figure.axes[0].lines[-2:])
    assert instant == [20] * 4 and stretch == pytest.approx([20, 20, 26.1, 26.1])
    assert str(picture).endswith("Marked: 0 cancelled, its blocks free. Marked: freed before the copies ended.")
