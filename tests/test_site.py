"""The explorer without a browser: settings and permalinks, the twin in slices, and the folder of `make site`."""

import hashlib
import html
import io
import itertools
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from disagg import simulate
from disagg.cli import main
from disagg.course.catalogue import quizzes
from disagg.explorer import pyodide
from disagg.explorer.chapters import CHAPTERS, pages, scene_file
from disagg.explorer.settings import CONTROLS, ExplorerSettings
from disagg.explorer.site import NOT_MEASURED, accuracy, build, index, package
from disagg.explorer.twin import EXPLORER, SHOWN, Desk, Twin, facts
from disagg.plan.config import PRESETS
from disagg.plan.errors import ConfigError, FileError
from disagg.show.plots.summaries import sentence
from disagg.show.scene import Menu
from disagg.twin.replay import in_lines

FEW = {"requests": "10", "answer": "8"}
ROOT = Path(__file__).parents[1]


def begin(desk: Desk, given: str) -> str:
    return desk.begin("explorer", given)


def test_nothing_given_is_the_start():
    start = ExplorerSettings("streamed", "llama3-8b", "2xA100", "25gbe", "fcfs", 100, 10, 800, 32, 0)
    assert ExplorerSettings.parse({}) == start
    assert ExplorerSettings.parse({"rate": "3", "link": "own"}).config.link is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"presets": "split"}, "setting 'presets' is unknown; known: preset, model, hardware"),
        ({"preset": "nosuch"}, "preset 'nosuch' is unknown; known: baseline"),
        ({"hardware": "2xB300"}, "hardware '2xB300' is unknown; known: 2xL4"),
        ({"rate": "65"}, "rate must be a whole number from 1 to 64; got '65'"),
        ({"requests": "15"}, "requests must be a whole number from 10 to 300 in steps of 10; got '15'"),
        ({"seed": "-1"}, "seed must be a whole number"),
        ({"seed": "1.5"}, "seed must be a whole number"),
        ({"seed": "nan"}, "seed must be a whole number"),
        ({"seed": "9" * 5000}, "seed must be a whole number"),
        ({"model": "<img src=x onerror=alert(1)>"}, "model '<img src=x onerror=alert(1)>' is unknown"),
    ],
)
def test_bad_settings_are_refused_in_words(given, words):
    with pytest.raises(ConfigError, match="^" + re.escape(words)):
        ExplorerSettings.parse(given)


@pytest.mark.parametrize("name", [name for name, control in CONTROLS.items() if isinstance(control, Menu)])
def test_every_choice_can_be_run_or_says_why_not(name):
    for value in CONTROLS[name].options:
        try:
            Twin(ExplorerSettings.parse({**FEW, "link": "own", name: value}))
        except ConfigError as error:
            assert value in ("llama3-70b", "2xCPU"), error


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ('{"model": "llama3-70b"}', "which is 67,087,314,944 more than 90% of its 80,000,000,000"),
        ('{"hardware": "2xCPU", "model": "smollm2"}', "faster than the emulation holds on a CPU"),
    ],
    ids=["a model that does not fit", "a link too fast for CPU workers"],
)
def test_what_no_hardware_can_do_is_said(given, words):
    assert words in begin(Desk(), given)


def test_no_refusal_of_the_page_advises_python():
    """Whatever is chosen from its menus, the advice is another choice there."""
    menus = {name: CONTROLS[name].options for name in ("hardware", "model", "link")} | {"preset": ("baseline", "split")}
    seen = set()
    for chosen in itertools.product(*menus.values()):
        words = begin(Desk(), json.dumps({**FEW, **dict(zip(menus, chosen, strict=True))}))
        seen.add(re.sub(r"\d[\d,]*", "#", words))
    said = " ".join(sorted(seen))
    assert "Choose another device or a smaller model" in said and "Choose a slower link, or GPUs" in said
    assert not re.search(r"take |dtype|Link\b|Config|\(c/x\)|random-|[a-z]_[a-z]", said), said


@pytest.mark.parametrize("preset", PRESETS)
def test_in_slices_it_is_what_simulate_gives(preset):
    settings, seen = ExplorerSettings.parse({**FEW, "preset": preset}), 0
    twin = Twin(settings)
    while twin.advance(7):
        seen += 1
    run, whole = twin.run(), simulate(settings.config, settings.asked, hardware=settings.hardware)
    assert seen > 5 and in_lines(run.log) == in_lines(whole.log) and run.timeline.spans == whole.timeline.spans
    assert (run.machine, run.config, facts(run)) == (whole.machine, whole.config, facts(whole))


def test_the_log_has_a_line_for_each_event():
    run = Twin(ExplorerSettings.parse(FEW)).run()
    lines = in_lines(run.log).decode().splitlines()
    assert len(lines) == len(run.log) and lines[0].startswith("0 Submit(job=Job(id=0, ")


def test_the_desk_drops_what_was_under_way():
    desk = Desk()
    assert begin(desk, json.dumps({**FEW, "seed": "1"})) == "" and desk.advance(3)
    assert begin(desk, json.dumps(FEW)) == "" and desk.log() == b""
    while desk.advance(500):
        pass
    said, columns = desk.answer()
    run, settings = Twin(ExplorerSettings.parse(FEW)).run(), EXPLORER.settings(FEW)
    expected, drawn = EXPLORER.answer(run, settings)
    assert (json.loads(said), columns) == (json.loads(json.dumps(expected)), drawn)
    assert begin(desk, '{"seed": "100"}').startswith("seed must be") and desk.log() == in_lines(run.log), "it stays"
    names = [name for name, _ in json.loads(said)["facts"]]
    assert names[0].startswith("TTFT") and names[-1] == "decode busy"


ALONE = """
import sys
for name in ("torch", "numpy", "matplotlib", "transformers", "rich"):
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
from disagg.explorer.twin import Desk
import disagg
assert disagg.__file__.startswith(sys.argv[1])
desk = Desk()
assert not desk.begin("03", '{"x": "20"}') and not desk.advance(9) and len(desk.answer()[1]) == 3
assert "x must be one of" in desk.begin("03", '{"x": "3"}')
assert not desk.begin("explorer", '{"requests": "10"}')
while desk.advance(1000):
    pass
print(len(desk.answer()[1][0]))
"""


def test_what_goes_into_the_browser_runs_alone(tmp_path):
    packed = tmp_path / "disagg.zip"
    packed.write_bytes(package())
    names = zipfile.ZipFile(packed).namelist()
    assert {n for n in names if not n.startswith(("disagg/plan/", "disagg/trace/", "disagg/twin/"))} == {
        "disagg/__init__.py", "disagg/imported_later.py", "disagg/show/__init__.py", "disagg/show/columns.py",
        "disagg/show/plots/__init__.py", "disagg/show/plots/palette.py", "disagg/show/plots/summaries.py",
        "disagg/show/scene.py", "disagg/course/__init__.py", "disagg/course/scenes.py",
        "disagg/explorer/__init__.py", "disagg/explorer/settings.py", "disagg/explorer/twin.py",
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-I", "-S", "-c", ALONE, str(packed)], capture_output=True, text=True)
    assert done.returncode == 0 and int(done.stdout) > 1000, done.stderr


def test_the_folder_has_what_it_needs_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(pyodide, "files", lambda cache: dict.fromkeys(pyodide.NAMES, b"x"))
    folder = build(tmp_path / "site", tmp_path)
    written = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert written == {
        "index.html", "explorer.css", "explorer.js", "worker.js", "canvas.js", "page.css", "disagg.zip", "pages.js",
        "flow.js", "curve.js", "instrument.js", "instrument.css", "chapter.js",
        *(f"scene-{name}.json" for name in SHOWN),
        *(f"{name}.html" for name in CHAPTERS),
        *(f"pyodide/{name}" for name in pyodide.NAMES),
    }  # fmt: skip
    start = json.loads((folder / "scene-explorer.json").read_bytes())
    assert start["said"]["sentence"] == sentence(Twin(ExplorerSettings.parse({})).run())
    (folder / "old.txt").write_text("from an older build")
    build(folder, None)
    assert not (folder / "old.txt").exists() and not (folder / "pyodide").exists()
    assert package() == (folder / "disagg.zip").read_bytes(), "the same files give the same bytes"


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileError, match="holds something else than an explorer"):
        build(tmp_path, None)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_the_command_says_what_it_wrote_and_make_serves_it_to_this_machine_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(pyodide, "files", lambda cache: {})
    done = CliRunner().invoke(main.app, ["site", "--folder", str(tmp_path / "site")])
    assert done.exit_code == 0 and "written:" in done.output, done.output
    assert (tmp_path / "site" / "index.html").exists()
    recipe = (ROOT / "Makefile").read_text().partition("\nexplorer:")[2].partition("\n\n")[0]
    assert "http.server --bind 127.0.0.1 --directory build/site" in recipe


def test_the_page_asks_for_nothing_outside_and_trusts_no_text(tmp_path):
    folder = build(tmp_path / "site", None)
    page = (folder / "index.html").read_text("utf-8")
    assert "default-src 'none'; script-src 'self'; worker-src 'self'; connect-src 'self'" in page
    assert not re.search(r"<script>|\son\w+=|style=|<!--", page), "the policy would forbid these"
    for path in (*folder.glob("*.js"), *folder.glob("*.css"), folder / "index.html"):
        trusting = r"https?://|innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\("
        assert not re.search(trusting, path.read_text("utf-8")), path.name


def test_every_control_comes_with_its_label_and_start():
    controls = {one["name"]: one for one in json.loads(scene_file(EXPLORER))["spec"]["controls"]}
    assert list(controls) == list(CONTROLS)
    for name, control in CONTROLS.items():
        shown = controls[name].get("values") or [value for value, _ in controls[name]["options"]]
        assert (controls[name]["label"], shown[controls[name]["at"]]) == (control.label, control.default)


def test_the_page_names_pyodide_and_the_twins_error():
    page = index(["nobody knows"])
    assert "Pyodide</em> 0.29.5 (Mozilla Public License 2.0" in page and "<p>nobody knows</p>" in page


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapters_page_has_its_questions_with_the_words_for_each_answer(chapter):
    page = html.unescape(re.sub("</?code>", "`", pages(ROOT / "notebooks")[f"{chapter}.html"].decode()))
    assert page.count('<fieldset class="question"') == len(quizzes()[chapter]) == 5
    for number, question in enumerate(quizzes()[chapter], 1):
        assert f'data-right="{question.right}"><legend>{number}. {question.text}</legend>' in page
        assert all(f"{said}</label>" in page for said, _ in question.lettered())
        assert all(f'data-why="{question.why(letter)}"' in page for letter in question.letters)
    assert "quiz(" not in page


def test_without_a_measurement_the_page_says_so(tmp_path):
    assert accuracy(tmp_path / "none.json") == [NOT_MEASURED]
    (tmp_path / "other.json").write_text('{"claims": [{"id": "ladder", "quotes": ["3 s"], "hardware": "a GPU"}]}')
    assert accuracy(tmp_path / "other.json") == [NOT_MEASURED]


def test_a_measured_error_is_shown_and_stays_text(tmp_path):
    ledger = tmp_path / "claims.json"
    claim = {"id": "twin-error-gpu", "quotes": ["half within 7.12 %", "<b>all</b> within 9 %"], "hardware": "one H200"}
    ledger.write_text(json.dumps({"claims": [claim, {**claim, "id": "ladder"}]}))
    assert accuracy(ledger) == ["half within 7.12 % <b>all</b> within 9 % (one H200)"]
    page = (build(tmp_path / "site", None, ledger) / "index.html").read_text()
    assert "half within 7.12 % &lt;b&gt;all&lt;/b&gt; within 9 % (one H200)" in page
    assert NOT_MEASURED not in page


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"claims": [3]}', "[" * 100_000, "\ud800".encode("utf-8", "surrogatepass")]
)
def test_a_broken_ledger_is_refused(tmp_path, text):
    ledger = tmp_path / "claims.json"
    ledger.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FileError, match="is no claims ledger"):
        accuracy(ledger)


def tarball(cache: Path, names=pyodide.NAMES) -> Path:
    path = cache / f"pyodide-{pyodide.VERSION}.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name in (*names, "README.md"):
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(name)
            archive.addfile(info, io.BytesIO(name.encode()))
    return path


def test_only_the_tested_pyodide_is_taken(tmp_path, monkeypatch):
    path = tarball(tmp_path)
    with pytest.raises(FileError, match="is not the Pyodide that was tested"):
        pyodide.files(tmp_path)
    monkeypatch.setattr(pyodide, "INTEGRITY", pyodide.digest(path))
    assert pyodide.files(tmp_path) == {name: name.encode() for name in pyodide.NAMES}
    assert len(pyodide.digest(path)) == len("sha512-") + 4 * -(-hashlib.sha512().digest_size // 3)


def test_without_npm_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileError, match="npm is not installed.*npm pack pyodide@"):
        pyodide.files(tmp_path / "cache")


def test_npms_failure_is_reported(tmp_path, monkeypatch):
    (tmp_path / "npm").write_text("#!/bin/sh\necho 'no route to host' >&2; exit 1\n")
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(FileError, match="npm could not fetch Pyodide: no route to host; try again"):
        pyodide.files(tmp_path / "cache")
