"""Hostile and broken files against every reader: only the reader's own error, in words, and nothing else happens."""

import ast
import contextlib
import json
import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hostile import make

from disagg import Config, Link, Request, Timeline, simulate
from disagg.cli import main, output
from disagg.cli.tape import gauges_of, in_order
from disagg.course import catalogue
from disagg.plan.errors import ConfigError, FileError, ModelError, RequestError, TraceError
from disagg.run.model import weights
from disagg.run.model.folder_checks import check_folder
from disagg.show.html_page import page
from disagg.show.plots.batch_plot import batches_picture
from disagg.show.plots.timeline_plot import timeline_picture
from disagg.show.recordings import StepTimes
from disagg.trace.files import MOST_LINES
from disagg.trace.results import Run
from disagg.twin.traces import read_trace

ROOT = Path(make.__file__).parents[2]
RECORDINGS, STEPS, TRACES = make.recordings(), make.steps(), make.traces()
FOLDERS, WEIGHTS = make.folder_files(), make.safetensors()


def refused(error, match: str, call, name: str = "") -> str:
    """The error, in one short line that can be printed and names the file."""
    with pytest.raises(error, match=match) as caught:
        call()
    text = str(caught.value)
    assert type(caught.value) is error and name in text and "\n" not in text and len(text) < 1000
    assert text.encode("utf-8")
    return text


def alone(code: str, *arguments, **environment) -> subprocess.CompletedProcess:
    """Runs code in a fresh interpreter."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    words = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, env=env, timeout=110)


def test_the_corpus_is_the_same_each_time(tmp_path):
    for folder in ("a", "b"):
        make.main(tmp_path / folder)
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) > 150
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


# ---- recordings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_hostile_recording_is_refused_in_words(name, tmp_path):
    content, match = RECORDINGS[name]
    (tmp_path / name).write_bytes(content)
    for load in (Run.load, Timeline.load):
        refused(FileError, match, lambda load=load: load(tmp_path / name), name)
    assert os.listdir(tmp_path) == [name]


def test_the_recording_they_are_made_of_is_right(tmp_path):
    """The control: what is refused is refused for what was changed."""
    (tmp_path / "run.jsonl").write_bytes(make.recording())
    assert Run.load(tmp_path / "run.jsonl").results[0].token_ids == [5]
    (tmp_path / "steps.json").write_bytes(make.line(make.STEPS))
    assert StepTimes.load(tmp_path / "steps.json").batches == [1]
    content = make.tensors({"a": make.TENSOR})
    check_folder(model_folder(tmp_path, ("model.safetensors", content)))


@pytest.mark.parametrize("name", RECORDINGS)
def test_the_command_says_it_in_one_sentence(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(output, "console", output.Console(width=1000))
    monkeypatch.setattr("sys.argv", ["disagg", "timeline", str(tmp_path / name)])
    (tmp_path / name).write_bytes(RECORDINGS[name][0])
    with pytest.raises(SystemExit) as caught:
        main.main()
    out = capsys.readouterr().out
    assert caught.value.code == 1 and out.startswith("FileError: ") and name in out and out.count("\n") == 1
    assert re.search(RECORDINGS[name][1], out), "no letter of it was taken for a style"


BOUNDED = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
from disagg.plan.errors import FileError
from disagg.trace.results import Run
from disagg.twin.traces import read_trace
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        {"run": Run.load, "trace": read_trace}[sys.argv[2]](path)
        print(path.name, "taken")
    except FileError as error:
        print(path.name, "FileError", error)
assert "torch" not in sys.modules
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "MiB")
"""


@pytest.mark.parametrize(
    "kind, corpus, largest", [("run", RECORDINGS, make.largest), ("trace", TRACES, make.largest_trace)]
)
def test_a_gibibyte_is_enough_for_bombs_and_for_the_largest_that_is_taken(kind, corpus, largest, tmp_path):
    """Each bomb would unpack to a gigabyte or more."""
    bombs = {name: corpus[name][0] for name in corpus if name.startswith(("bomb", "deep"))}
    for name, content in (bombs | {"largest.jsonl": largest()}).items():
        (tmp_path / name).write_bytes(content)
    assert 55 * 2**20 < (tmp_path / "largest.jsonl").stat().st_size <= 64 * 2**20
    done = alone(BOUNDED, tmp_path, kind)
    assert done.returncode == 0, done.stderr[-500:]
    lines = done.stdout.splitlines()
    assert "largest.jsonl taken" in lines
    assert len([line for line in lines if " FileError " in line]) == len(bombs) >= 5


@contextlib.contextmanager
def traced():
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


def test_rows_of_a_trace_take_bounded_memory(tmp_path):
    """The limit is fifty times as many rows."""
    (tmp_path / "rows.csv").write_bytes(make.COLUMNS + make.CALLED * (MOST_LINES // 50))
    with traced() as peak:
        assert len(read_trace(tmp_path / "rows.csv")) == MOST_LINES // 50
        assert 50 * peak() < 2**30


def test_markup_stays_text_everywhere(tmp_path, monkeypatch, capsys):
    path = tmp_path / "run.jsonl"
    path.write_bytes(make.with_markup())
    run = Run.load(path)
    html = page(run)
    assert "<img" not in html and html.count("<script") == html.count("</script>") == 5
    assert timeline_picture(run).png().startswith(b"\x89PNG"), "no formula is set, and none is refused"
    run.timeline.to_perfetto(tmp_path / "trace.json")
    json.loads((tmp_path / "trace.json").read_text("utf-8"))
    monkeypatch.setattr(output, "console", output.Console(width=1000))
    monkeypatch.setattr("sys.argv", ["disagg", "timeline", str(path), "--receipts"])
    with pytest.raises(SystemExit, match="0"):
        main.main()
    assert f"Recorded on {make.MARKUP[0]}." in capsys.readouterr().out
    assert gauges_of(run.timeline) == []


PREFIX = [[1, "queued"], [2, "prefilling"]]
LIVES = {"none": [], "cut off": PREFIX, "at a step": [*PREFIX, [9, "landed"], [11, "running"]],
         "other end": [*PREFIX, [9, "landed"], [11, "running"], [12, "queued"]]}  # fmt: skip


@pytest.mark.parametrize("name", LIVES)
def test_batches_of_a_life_that_was_not_recorded_to_its_end(name, tmp_path):
    spans = make.line(make.SPAN) + make.line(
        make.SPAN, span="decode", place="decode 0", start_ns=11, end_ns=20, ready_ns=11, count=1, groups=[1]
    )
    result = make.RESULT | {"stages": LIVES[name], "token_ids": [5, 6], "token_times_ns": [9, 20]}
    end = {"end": make.END["end"] | {"span": 2}}
    (tmp_path / "run.jsonl").write_bytes(make.recording(span=spans, result=result, end=end))
    assert batches_picture(Run.load(tmp_path / "run.jsonl")).png().startswith(b"\x89PNG")


def test_counts_of_an_unknown_name_come_last():
    assert in_order(["zebra", "free host", "prefill 0 queue"]) == ["prefill 0 queue", "free host", "zebra"]


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_names_that_no_file_can_have(name, tmp_path):
    run = simulate(Config(model="tiny"), [Request([1, 2], 2)])
    for call in (Run.load, Timeline.load, StepTimes.load, run.save, run.timeline.to_perfetto, run.to_html):
        refused(FileError, "is no usable path", lambda call=call: call(tmp_path / name))
    assert os.listdir(tmp_path) == []


def test_nothing_is_written_through_a_link_that_lies_where_the_draft_goes(tmp_path):
    run = simulate(Config(model="tiny"), [Request([1, 2], 2)])
    (tmp_path / "mine").write_text("precious")
    place = tmp_path / "place"
    place.mkdir()
    for name in ("run.jsonl", "page.html", "trace.json"):
        stem, _, ending = name.partition(".")
        (place / f"{stem}.{os.getpid()}.draft.{ending}").symlink_to(tmp_path / "mine")
    run.save(place / "run.jsonl")
    run.to_html(place / "page.html")
    run.timeline.to_perfetto(place / "trace.json")
    assert (tmp_path / "mine").read_text() == "precious"
    assert sorted(os.listdir(place)) == ["page.html", "run.jsonl", "trace.json"]


def test_a_page_that_cannot_be_written_leaves_what_was_there(tmp_path):
    run = simulate(Config(model="tiny"), [Request([1, 2], 2)])
    refused(FileError, "can't be written: No such file", lambda: run.to_html(tmp_path / "no" / "page.html"))
    (tmp_path / "page.html").write_text("old")
    run.machine = object()
    with pytest.raises(AttributeError):
        run.to_html(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == "old" and os.listdir(tmp_path) == ["page.html"]


# ---- times of steps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STEPS)
def test_hostile_times_of_steps_are_refused_in_words(name, tmp_path):
    content, match = STEPS[name]
    (tmp_path / name).write_bytes(content)
    refused(FileError, match, lambda: StepTimes.load(tmp_path / name), name)


# ---- traces of arrivals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRACES)
def test_a_hostile_trace_is_refused_in_words(name, tmp_path):
    content, match = TRACES[name]
    (tmp_path / name).write_bytes(content)
    refused(TraceError, match, lambda: read_trace(tmp_path / name), name)
    assert os.listdir(tmp_path) == [name]


def test_the_trace_they_are_made_of_is_right(tmp_path):
    """The control. Both formats tell the same."""
    (tmp_path / "a.csv").write_bytes(make.COLUMNS + make.CALLED * 2)
    (tmp_path / "a.jsonl").write_bytes(make.line(make.ARRIVAL) * 2)
    found = [read_trace(tmp_path / name) for name in ("a.csv", "a.jsonl")]
    assert [[arrival[:3] for arrival in trace] for trace in found] == [[(0.0, 480, 10)] * 2] * 2


def test_what_is_no_file_is_no_trace(tmp_path):
    """A pipe would be waited for."""
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.jsonl").mkdir()
    for name in ("pipe.csv", "folder.jsonl"):
        refused(TraceError, "is not a file", lambda name=name: read_trace(tmp_path / name), name)
    for name in ("a\0b.csv", "a\ud800b.jsonl"):
        refused(TraceError, "is no usable path", lambda name=name: read_trace(tmp_path / name))


# ---- models ----------------------------------------------------------------------------------------------------------


def model_folder(tmp_path: Path, *files: tuple[str, bytes]) -> Path:
    """A folder with a config, one tensor, and these files."""
    folder = tmp_path / "model"
    folder.mkdir()
    good = {"config.json": b"{}", "model.safetensors": make.tensors({"a": make.TENSOR})}
    for name, content in (good | dict(files)).items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("name", WEIGHTS)
def test_hostile_weights_are_refused_and_the_tensor_named(name, tmp_path):
    content, match = WEIGHTS[name]
    folder = model_folder(tmp_path, ("model.safetensors", content))
    refused(ModelError, match, lambda: check_folder(folder), "model.safetensors")


@pytest.mark.parametrize("name", FOLDERS)
def test_a_hostile_folder_is_refused_and_its_file_named(name, tmp_path):
    file, content, match = FOLDERS[name]
    folder = model_folder(tmp_path, (file, content))
    refused(ModelError, match, lambda: check_folder(folder), file)


def test_what_is_no_file_is_not_opened(tmp_path):
    """A pipe would be waited for; a folder or a dead link raises an unexpected error."""
    folder = model_folder(tmp_path)
    for make_it in (os.mkfifo, os.mkdir, lambda path: os.symlink("nowhere", path)):
        for name in ("x.safetensors", "tokenizer.json"):
            make_it(folder / name)
            refused(ModelError, f"{name} is not a file that can be read", lambda: check_folder(folder))
            (folder / name).rmdir() if (folder / name).is_dir() else (folder / name).unlink()
    check_folder(folder)


def test_a_header_takes_bounded_memory(tmp_path):
    """Empty lists take most for their bytes; the limit is sixteen times this header."""
    folder = model_folder(tmp_path, ("model.safetensors", make.tensors(b'{"a":[' + b"[]," * 350_000 + b"1]}")))
    with traced() as peak:
        refused(ModelError, "tensor a has", lambda: check_folder(folder))
        assert 16 * peak() < 2**30


LOAD = """
import json, resource, shutil, sys
from pathlib import Path
from disagg.plan.errors import ModelError
from disagg.run.model.model import load_model
from disagg.run.model.weights import quiet_transformers
from benchmarks.robustness.architectures import make_tiny
from hostile import make
place, seen = Path(sys.argv[1]), []
make_tiny("llama", place / "good")
load_model(str(place / "good"))
first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # torch and transformers, which differ from build to build
def hook(event, args):
    written = event == "open" and args[1] is not None and set(str(args[1])) & set("wax+")
    written = written and "/dev/" not in str(args[0])
    if event.startswith(("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "pickle.")) or written:
        seen.append(f"{event} {args[:2]}"[:200])
sys.addaudithook(hook)
def attempt(name, file, content):
    folder = place / name
    shutil.copytree(place / "good", folder)
    (folder / "evil.py").write_text("raise SystemExit('executed')")
    (folder / file).write_bytes(content)
    seen.clear()
    try:
        load_model(str(folder))
        print(name, "loaded")
    except ModelError as error:
        print(name, "ModelError", str(error).replace("\\n", "⏎"))
    if seen:
        print(name, "BUT", seen)
    shutil.rmtree(folder)
for name, (file, content) in make.tokenizers().items():
    attempt(name, file, content)
config = json.loads((place / "good" / "config.json").read_text())
for field, value in json.loads(sys.argv[2]):
    attempt(f"{field}={value}"[:40], "config.json", json.dumps(config | {field: value}).encode())
assert "evil" not in sys.modules
print("grown", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - first) // 1024)
"""
PROMISES = [
    ("hidden_size", 10**6), ("intermediate_size", 10**9), ("vocab_size", 10**12), ("num_hidden_layers", 9999),
    ("head_dim", 10**9), ("num_attention_heads", 0), ("num_key_value_heads", 0), ("num_key_value_heads", 3),
    ("head_dim", -16), ("vocab_size", "300"), ("max_position_embeddings", -5), ("max_position_embeddings", 0),
    ("model_type", "../evil"), ("model_type", ["llama"]), ("hidden_act", "__import__('os')"), ("dtype", "evil"),
    ("rope_parameters", [1]), ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    ("rms_norm_eps", "x"),
]  # fmt: skip


def test_folders_that_only_loading_shows_to_be_broken(tmp_path):
    """One process for all: nothing is executed, fetched, unpickled or written, and memory stays small."""
    done = alone(LOAD, tmp_path, json.dumps(PROMISES), PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    *lines, grown = done.stdout.splitlines()
    assert len(lines) == len(make.tokenizers()) + len(PROMISES), done.stdout
    odd = [line for line in lines if " ModelError " not in line or "⏎" in line]
    assert odd == ["class_of_nobody loaded"], "a tokenizer's class of no known name is not looked up"
    assert sum("declares" in line for line in lines) >= 5, "refused before room was made for them"
    assert int(grown.split()[1]) < 512, "MiB beyond what loading a good one took"


@pytest.mark.parametrize("name", make.receipts())
def test_a_broken_receipt_is_refused(name, tmp_path):
    folder = model_folder(tmp_path, ("receipt.json", make.receipts()[name]))
    refused(ModelError, "convert", lambda: weights.check_smollm2(folder))


@pytest.mark.parametrize("name", make.ggufs())
def test_a_gguf_that_is_not_the_pinned_one_is_never_parsed(name, tmp_path, monkeypatch):
    gguf, parsed = tmp_path / weights.GGUF_NAME, []
    gguf.write_bytes(make.ggufs()[name])
    monkeypatch.setenv("DISAGG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "find_gguf", lambda: gguf)
    monkeypatch.setattr(weights, "write_safetensors", lambda *arguments: parsed.append(arguments))
    refused(ModelError, "not the pinned", weights.convert_smollm2, weights.GGUF_NAME)
    assert parsed == [] and os.listdir(tmp_path) == [gguf.name]


# ---- what learners have solved ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", make.progress())
def test_a_broken_progress_file_counts_as_none_and_is_written_again(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(catalogue.FILE).write_bytes(make.progress()[name])
    assert catalogue.solved() == set()
    assert catalogue.remember(next(iter(catalogue.exercises())))
    assert len(catalogue.solved()) == 1 and os.listdir(tmp_path) == [catalogue.FILE]


def test_progress_never_waits_for_a_pipe_nor_writes_through_a_link(tmp_path, monkeypatch):
    first = next(iter(catalogue.exercises()))
    (tmp_path / "mine").write_text("precious")
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    os.mkfifo(catalogue.FILE)
    assert catalogue.solved() == set() and catalogue.remember(first) and catalogue.solved() == {first}
    Path(catalogue.FILE).unlink()
    for link in (catalogue.FILE, catalogue.FILE + ".draft", f"{catalogue.FILE}.{os.getpid()}.draft"):
        Path(link).symlink_to(tmp_path / "mine")
    assert catalogue.remember(first) and (tmp_path / "mine").read_text() == "precious"


# ---- what people type ------------------------------------------------------------------------------------------------

ODD = [10**400, -(10**400), 10**5000, -(10**5000), float("nan"), float("-inf"), np.array([1, 2]), np.array(["a"]),
       "x" * 10**6, "\ud800", b"x", {}, [[]], object(), lambda: 0, Link, 1j]  # fmt: skip


@pytest.mark.parametrize("value", ODD, ids=lambda value: type(value).__name__)
def test_odd_values_are_refused_in_a_line(value):
    """Or taken, where they are right; no other exception, whatever is given."""
    fields = [field for field in Config.__dataclass_fields__ if field != "link"]
    calls = [lambda field=field: Config(**{field: value}) for field in fields]
    calls += [lambda: Config(link=value), lambda: Config(link=(None, value)), lambda: Config.preset(value)]
    calls += [lambda field=field: Link(**{field: value}) for field in Link.__dataclass_fields__]
    calls += [lambda: Link.ratio(value), lambda: Config().replace(**{"x" * 10**6: value})]
    for call in calls:
        try:
            repr(call())
        except ConfigError as error:
            assert len(str(error)) < 500 and "\n" not in str(error) and str(error).encode("utf-8")
    for field in Request.__dataclass_fields__:
        try:
            repr(Request(**{"prompt": "a", field: value}))
        except RequestError as error:
            assert len(str(error)) < 500 and "\n" not in str(error)


@pytest.mark.parametrize("value", [10**31, 10**400, -(10**400), 1e31])
def test_a_bandwidth_beyond_all_links_is_refused(value):
    for call in (lambda: Link(value), lambda: Config(link=value), lambda: Config(link=(None, value))):
        refused(ConfigError, "bandwidth must be bytes a second", call)


def test_counts_beyond_all_counting_are_refused():
    refused(ConfigError, "max_batch must be at most 65,536", lambda: Config(max_batch=2**62))
    refused(ConfigError, "bins must be at most 10,000,000", lambda: Config(bins=(2**62,)))
    refused(RequestError, "max_new_tokens must be below", lambda: Request("a", 2**62))
    refused(RequestError, "seed must be below", lambda: Request("a", seed=-(2**62)))


# ---- what may show text from outside ---------------------------------------------------------------------------------


def test_no_script_of_ours_makes_markup_of_text_or_asks_for_anything_outside():
    """Explorer and chapters ask for files that lie beside them."""
    scripts = sorted((ROOT / "disagg").rglob("*.js"))
    assert len(scripts) >= 2
    words = (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "http:",
        "https:",
    )
    asked = []
    for path in scripts:
        text = path.read_text("utf-8")
        assert not [word for word in words if word in text], path.name
        asked += [(path.name, what) for what in re.findall(r"\b(?:fetch|import)\((.*?)\)", text)]
    beside = ("pages.js", "`scene-${place.dataset.scene}.json`")
    assert asked == [beside, ("worker.js", 'new URL("./disagg.zip", import.meta.url')]


def test_html_widgets_stand_in_files_that_escape():
    """A Label shows text as it is; a file that needs markup imports `escape`."""
    found = []
    for path in sorted((ROOT / "disagg").rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        names = [n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
        names += [n.id for n in ast.walk(tree) if isinstance(n, ast.Name)]
        if {"HTML", "HTMLMath", "Markdown", "display_html", "Javascript"} & set(names):
            assert "from html import escape" in path.read_text("utf-8"), path.name
            found.append(path.name)
    assert "fallback.py" in found, "the control"
