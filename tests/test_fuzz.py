"""The fuzz command: a few hundred inputs a reader, what it keeps of a failure, and that it would see one."""

import json
import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import suites
from benchmarks.robustness import file_mutation, fuzz
from benchmarks.robustness.fuzz_readers import READERS, FuzzedReader
from disagg.plan.errors import FileError

COUNTS = {"recording": 300, "use": 12, "steps": 300, "trace": 400, "folder": 100, "receipt": 20, "settings": 400,
          "progress": 200, "calibration": 200, "shape": 300}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in READERS if name != "model"])  # test_hostile has some models
def test_a_few_hundred_inputs(name, tmp_path):
    said = []
    found = fuzz.fuzz(READERS[name], lambda done: done < COUNTS[name], 1, tmp_path, said.append)
    assert said == [] and found.wrong == 0 and found.inputs == COUNTS[name]
    assert found.refused or name in ("progress", "use"), "files made wrong are refused"


def planted(read, errors=(FileError,), names_file=True) -> FuzzedReader:
    def seeds(folder: Path) -> list[Path]:
        (folder / "a.json").write_text('{"a": 1}\n')
        return [folder / "a.json"]

    return FuzzedReader("planted", errors, seeds, read, names_file)


def raising(error: Exception):
    """A reader that fails where the file is not the valid one."""

    def read(path: Path):
        if path.read_text("latin-1") != '{"a": 1}\n':
            raise error

    return read


WRONG = {
    "another error": (KeyError("x"), "KeyError at test_fuzz.py"),
    "no name": (FileError("wrong"), "a message without the file's name"),
    "two lines": (FileError("a.json:\nwrong"), "a message of more than a line"),
    "an essay": (FileError("a.json" * 500), "a message of more than a line"),
    "no text": (FileError("a.json \ud800"), "a message of no text"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_must_not_come_back_is_counted_and_kept_once(case, tmp_path):
    error, words = WRONG[case]
    said = []
    found = fuzz.fuzz(planted(raising(error)), lambda done: done < 20, 0, tmp_path, said.append)
    assert found.wrong > 10 and len(said) == len(found.failures) == 1
    kept = next(iter(found.failures.values()))
    assert words in said[0] and f"--reader planted --input {kept}" in said[0]
    assert fuzz.attempt(planted(raising(error)), kept).startswith(words), "the kept file does it again"


def test_a_slow_input_is_one_that_went_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "MOST_S", -1.0)
    found = fuzz.fuzz(planted(lambda path: None), lambda done: done < 3, 0, tmp_path, lambda text: None)
    assert found.wrong == 3


def test_a_reader_that_refuses_what_is_valid_stops_the_run(tmp_path):
    def never(path: Path):
        raise FileError(f"{path}: never")

    with pytest.raises(FileError, match="never"):
        fuzz.fuzz(planted(never), lambda done: done < 3, 0, tmp_path)


def test_the_same_seed_makes_the_same_files():
    content = b'{"a": [1, 2, {"b": "x"}]}\n{"c": null}\n'
    made = [[file_mutation.mutated(content, random.Random(f"{seed}")) for seed in range(200)] for _ in range(2)]
    assert made[0] == made[1] and len(set(made[0])) > 100
    assert content not in made[0][:20] or len(set(made[0])) > 150


def test_every_kind_of_change_can_meet_an_empty_file():
    for seed in range(200):
        file_mutation.mutated(b"", random.Random(seed))


def test_other_numbers_leave_lines_well_formed():
    content = b'{"h":1}\n{"a":5,"b":6}\n{"a":7}\n{"end":1}\n'
    for seed in range(100):
        lines = file_mutation.other_numbers(content, random.Random(seed)).splitlines()
        assert [sorted(json.loads(line)) for line in lines] == [["h"], ["a", "b"], ["a"], ["end"]]


def test_the_command_writes_rows_and_reads_one_file_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fuzz, "peak_bytes", lambda: 2**20)  # of the whole process, in which other tests ran before
    done = CliRunner().invoke(suites.app, ["fuzz", "--reader", "steps", "--minutes", "0.002", "--json", "rows.json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(Path("rows.json").read_text())["rows"]
    assert [(row["name"], row["bar"]) for row in rows] == [("fuzz[steps]", "≤ 0"), ("fuzz_peak[steps]", "≤ 1")]
    assert rows[0]["value"] == 0 and rows[0]["n"] > 0 and rows[1]["value"] > 0 and "peak" in rows[0]["note"]
    Path("bad.json").write_text("{}\n")
    done = CliRunner().invoke(suites.app, ["fuzz", "--reader", "steps", "--input", "bad.json"])
    assert isinstance(done.exception, FileError) and "bad.json, line 1" in str(done.exception)
    for words in (["--reader", "nobody"], ["--input", "bad.json"]):
        assert CliRunner().invoke(suites.app, ["fuzz", *words]).exit_code == 2
