"""The scenes of `make show`: what the lesson plan says is what they show."""

import json
import re
from pathlib import Path

import disagg
from disagg.course.lesson import LESSON, lesson
from disagg.course.scenes import SCENES

ROOT = Path(disagg.__file__).parents[1]
PLAN = (ROOT / "docs" / "teaching.md").read_text("utf-8")


def test_each_scene_is_a_tab_and_stands_in_the_plan():
    shown = lesson()
    assert repr(shown) == "Three scenes, a tab each: Hide the copy, The CPU as buffer, Who shares a step."
    assert list(shown.panel.titles) == list(LESSON) and all(f"| {title} |" in PLAN for title in LESSON)
    assert shown.scenes["Hide the copy"].settings["x"] == 40
    shown.close()


def test_the_plan_has_the_figures_of_the_copy():
    exposed = [SCENES["03"].run(**SCENES["03"].settings({"x": x})).overlap(0).exposed_s for x in (40, 10, 5)]
    assert [round(1e3 * seconds) for seconds in exposed] == [910, 10, 5] and "E 910 ms, then 10 ms, then 5 ms" in PLAN


def test_the_plan_tells_what_moves():
    def figures(name, **given):
        settings = SCENES[name].settings(given)
        run = SCENES[name].run(**settings)
        gaps = max(gap for result in run.results for gap in result.itl_s)
        return gaps, run

    few, many = figures("04", blocks=16)[0], figures("04", blocks=48)[0]
    assert many < few
    alone, four, all_in = (figures("05", places=n)[1].metrics().tokens_per_s for n in (1, 4, 32))
    assert alone < four < all_in
    free, promised = figures("05"), figures("05", target=110)
    steps = [
        max(s.end_ns - s.start_ns for s in run.timeline.spans if s.kind == "decode") for _, run in (free, promised)
    ]
    assert steps[1] < steps[0] and promised[1].metrics().ttft_s.p50 > free[1].metrics().ttft_s.p50
    assert figures("05", first=48)[1].padding.waste < free[1].padding.waste


def test_the_plan_has_the_minutes_that_the_chapters_tell_their_readers():
    own = {}
    for path in (ROOT / "notebooks").glob("0?_*.ipynb"):
        opening = "".join(json.loads(path.read_text("utf-8"))["cells"][0]["source"])
        own[path.stem] = re.findall(r"\*\*Time:\*\* about (\d+) minutes", opening)
    planned = dict(re.findall(r"^\| `(0\d_\w+)` \| (\d+) \|", PLAN, re.MULTILINE))
    assert len(planned) == 9 and own == {name: [minutes] for name, minutes in planned.items()}
