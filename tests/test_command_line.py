"""The command line: whatever path it is given it answers in a sentence, and what it prints fits 80 columns."""

import errno
import itertools
import os
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from test_plots import simulated

from benchmarks import suites
from disagg.cli import learn, main, output
from disagg.plan.errors import FileError
from disagg.show import report as bench_rows
from disagg.show import tables
from disagg.show.plots.pareto_plot import COLUMNS
from disagg.trace.files import check_writable

MEASURES = {command.name or command.callback.__name__ for command in suites.app.registered_commands}

#: Parameters that name what is read. Every other path is written, and is looked at before any work is done for it.
TRACES = {"twin --trace", "two-gpu --trace", "tune --trace"}
READ = TRACES | {"policy --trace", "slides notebooks", "timeline file", "validate --calibration", "fuzz --input"}
LATER = {
    "policy --trace",
    "slides --folder",
    "site --folder",
    "site --cache",
    "record-gpu --out",
}  # folders that are made when needed
NEEDED = {"tune": ["--ttft", "1", "--tpot", "1"], "timeline": ["run.jsonl"], "slides": ["x.ipynb"],
          "fuzz": ["--reader", "steps", "--minutes", "0"]}  # fmt: skip
LONG = "a" * 300
NO_FILE = ["/proc/x/y", "/", "file/x", LONG]
ODD = ["", ".", f"{LONG}/x", "no/such/x", "/dev/full", "/dev/null", "loop/x", "\udcff"]


def paths() -> dict[str, bool]:
    """ "command --option" → is it looked at first? Of every parameter that takes a path."""
    found = {}
    for command in [*output.app.registered_commands, *suites.app.registered_commands]:
        name = command.name or command.callback.__name__
        for parameter, hint in typing.get_type_hints(command.callback, include_extras=True).items():
            if "pathlib.Path" in str(hint):
                info = hint.__metadata__[0]
                option = f"--{parameter}" if type(info).__name__ == "OptionInfo" else parameter
                found[f"{name} {option}"] = info.callback is not None
    return found


def test_every_path_is_read_or_looked_at_before_the_work():
    assert {name for name, first in paths().items() if not first} == READ | LATER
    assert {"doctor --json", "demo --picture", "tune --png", "timeline --perfetto", "calibrate --out"} <= paths().keys()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a recording, a notebook, and paths that can't be read or written."""
    monkeypatch.chdir(tmp_path)
    simulated("streamed").save(tmp_path / "run.jsonl")
    (tmp_path / "x.ipynb").write_text('{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}')
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    return tmp_path


def answer(monkeypatch, capsys, *words: str) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["disagg", *words])
    monkeypatch.setattr(output, "console", output.Console(width=1000))
    with pytest.raises(SystemExit) as ended:
        (suites if words[0] in MEASURES else main).main()
    heard = capsys.readouterr()
    return ended.value.code, heard.out + heard.err


FIRST = [name for name, first in paths().items() if first]


@pytest.mark.parametrize("option, path", [*itertools.product(FIRST, NO_FILE), *(("doctor --json", p) for p in ODD)])
def test_what_cannot_be_written_is_refused_in_a_sentence(option, path, place, monkeypatch, capsys):
    command, option = option.split()
    if (command, option) == ("validate", "--picture"):  # a folder, which may be there already
        path = "file" if path == "/" else path
    before = sorted(os.listdir(place))
    code, said = answer(monkeypatch, capsys, command, *NEEDED.get(command, []), option, path)
    assert code == 1 and said.startswith("FileError: ") and said.count("\n") == 1, said
    assert sorted(os.listdir(place)) == before and Path("/dev/null").is_char_device()


@pytest.mark.parametrize("words, path", itertools.product(
    (["timeline"], ["slides"], ["tune", "--ttft", "1", "--tpot", "1", "--trace"], ["validate", "--calibration"],
     ["slides", "x.ipynb", "--folder"], ["site", "--folder"]),
    ("/proc/x", "/", "file/x", LONG, "no.such", "loop", "\udcff", "file"),
))  # fmt: skip
def test_what_cannot_be_read_or_made_is_refused_in_a_sentence(words, path, place, monkeypatch, capsys):
    if "--folder" in words and path in ("no.such", "\udcff"):
        path = "/proc/y"
    code, said = answer(monkeypatch, capsys, *words, path)
    assert code == 1 and "Error: " in said and said.count("\n") == 1, said


def test_a_full_disk_and_a_read_only_folder_are_reported(tmp_path, monkeypatch):
    for number in (errno.ENOSPC, errno.EACCES, errno.EROFS):

        def refuse(*args, number=number):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("disagg.trace.files.open", refuse, raising=False)
        with pytest.raises(FileError, match=f"x can't be written: {os.strerror(number)}"):
            check_writable(tmp_path / "x")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error, code, words", [
    (KeyboardInterrupt(), 130, "interrupted\n"), (BrokenPipeError(errno.EPIPE, "gone"), 1, ""),
    (OSError(errno.ENOSPC, "No space left on device", "x"), 1, "OSError: x: No space left on device\n"),
    (FileError("no"), 1, "FileError: no\n"),
])  # fmt: skip
def test_how_a_command_ends(error, code, words, monkeypatch, capfd):
    def fail():
        raise error

    monkeypatch.setattr("disagg.cli.doctor.findings", fail)
    monkeypatch.setattr(main, "_drop_output", lambda: None)
    assert answer(monkeypatch, capfd, "doctor") == (code, words)


def shell(words: str, **how) -> subprocess.CompletedProcess:
    command = f"{sys.executable} -m {words}"
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=110, **how)


def test_a_reader_that_goes_away_and_a_full_disk_behind_a_pipe_leave_no_traceback():
    done = shell("benchmarks claims --json | head -1")
    assert (done.stdout, done.stderr) == ("{\n", "")
    done = shell("benchmarks claims > /dev/full; echo $?")
    assert done.stderr.count("\n") == 1 and "No space left" in done.stderr and done.stdout == "1\n"


def test_words_that_are_wrong_are_answered_as_usual(monkeypatch, capsys):
    for words in (["nonsense"], ["doctor", "--nonsense"], ["timeline"]):
        code, said = answer(monkeypatch, capsys, *words)
        assert code == 2 and "Usage" in said


# ---- tables ----------------------------------------------------------------------------------------------------------

words = st.lists(st.sampled_from(["wait", "3.2", LONG[:90]])).map(" ".join)
cells = words | st.text(st.characters(codec="utf-8"), max_size=60)


@given(st.integers(1, 8).flatmap(lambda n: st.lists(st.lists(cells, min_size=n, max_size=n), min_size=1, max_size=6)))
def test_a_table_fits_and_loses_nothing(rows):
    lines = tables.table(rows[0], rows[1:])
    for row in rows[1:]:
        for word in " ".join(map(tables.plain, row)).split():
            assert word in " ".join(lines)
    assert all(line.isprintable() for line in lines)
    assert all(cell_len(line) <= 80 or max(map(cell_len, line.split())) > 20 for line in lines)


def long_rows():
    names = [f"second_token_gap_p50_s[two_colocated, {'x' * n}]" for n in (0, 9, 20)]
    notes = ("", "a note of many words " * 12, "short")
    found = [bench_rows.Row(n, 1234.5, "tokens/s", 0.1, 10_000, note) for n, note in zip(names, notes, strict=True)]
    return [*found, bench_rows.LeftOut("peers[generate_batch]", "a reason of many words " * 9)]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_every_table_of_the_commands_fits(width, capsys, monkeypatch, place):
    monkeypatch.setattr(output, "console", output.Console(width=width))
    bench_rows.show(long_rows(), output.console, "bench, suite cpu")
    output.table(("", ""), [("attention", "many words " * 30)])
    row = ("1 prefill + 1 decode", "2 devices", "5", "90%", "256", "32", "staged, ring of 4", "as measured")
    output.table(COLUMNS, [row] * 2)
    learn.timeline(Path("run.jsonl"), receipts=True)
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\r" not in out
    assert [line for line in out.splitlines() if cell_len(line) > width] == []
    assert "a note of many words" in out and "a reason of many words" in out


def test_a_step_in_a_pipe_is_a_line():
    code = "from disagg.cli import output\nwith output.saying() as say: say('step ' * 40); say('two')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=110)
    assert not {"\r", "\x1b"} & set(done.stdout) and done.stdout.splitlines()[-1] == "· two"
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize("name", sorted(main.MOVED))
def test_a_command_that_has_moved_says_where_it_is_now(name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["disagg", name, "--suite", "gpu", "--json", "x"])  # options of before
    monkeypatch.setattr(output, "console", output.Console(width=1000))
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 2 and f"python -m benchmarks {main.MOVED[name]}" in capsys.readouterr().out
    assert set(main.MOVED[name].split("|")) <= MEASURES
