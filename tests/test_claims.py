"""The ledger agrees with README, notebooks and origins; and whatever is changed by one number turns it red."""

import json
import re
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.claims import claims_file, ledger, simulated
from benchmarks.claims.arithmetic import evaluated
from benchmarks.claims.ledger import found, kept, problems, refresh
from benchmarks.claims.text_numbers import Passage, numbers_in, one_line
from benchmarks.suites import app
from disagg.cli import demo
from disagg.plan.errors import FileError
from disagg.plan.link import PRESETS
from disagg.run.model.model import load_model
from disagg.twin import hardware
from disagg.twin.simulate import Speeds

ROOT = claims_file.ROOT


@pytest.fixture
def copy(tmp_path) -> Path:
    """A checkout's README, notebooks, ledger and measured rows, to change."""
    for name in ("README.md", "figures/claims.json", "benchmarks/claims/claims.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "figures" / "measured", tmp_path / "figures" / "measured")
    for folder in ("notebooks", "docs"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    return tmp_path


def change(path: Path, old: str, new: str):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_every_number_is_backed_and_comes_out_as_it_is_stored():
    assert problems() == []


def test_a_ledger_entry_says_how_to_get_it_again():
    for row in kept().values():
        for name in ("command", "workload", "hardware", "quotes", "numbers"):
            assert row[name], f"{row['id']} has no {name}"
        assert len(row["workload_sha256"]) == 64 and row["verdict"] in claims_file.VERDICTS
        assert row["interval"] or row["why_no_interval"]
        assert all(low <= high for low, high in (row["interval"] or {}).values())
        if row["verdict"] not in ("reproduced", "predicted only"):
            assert row["conditions"], f"{row['id']} is {row['verdict']}: under which conditions?"


# ---- whatever changes turns it red -----------------------------------------------------------------------------------


BOOK_2, BOOK_5 = "notebooks/02_disaggregation.ipynb", "notebooks/05_dynamic_batching.ipynb"
CHANGED = {
    "a number of a page": (
        ("docs/measured.md", "| 4.58 s | 50 ms |", "| 4.57 s | 50 ms |"),
        ("^stale: docs/measured.md does not say.*claim ladder", "'4.57 s'"),
    ),
    "a number of a notebook": ((BOOK_2, "= 517 ms", "= 518 ms"), ("^stale: notebooks/02", "^unbacked")),
    "a share of a notebook": (
        (BOOK_2, "for 60 % of the time", "for 61 % of the time"),
        ("^stale: notebooks/02", "^unbacked"),
    ),
    "a stored output": ((BOOK_2, "'decode 0': '60%'", "'decode 0': '59%'"), ("does not print '60 %'",)),
    "a measured row": (("figures/measured/demo.json", '"value": 4.58', '"value": 4.55'), ("claim ladder: quotes",)),
    "the id of a claim": (
        ("benchmarks/claims/claims.toml", "[claim.01-ridge]", "[claim.01-notes]"),
        ("claim 01-notes: id", "has claim 01-ridge"),
    ),
}


@pytest.mark.parametrize("what", CHANGED)
def test_a_change_is_found(copy, what):
    (file, old, new), patterns = CHANGED[what]
    change(copy / file, old, new)
    found = problems(copy)
    assert [pattern for pattern in patterns if not any(re.search(pattern, text, re.S) for text in found)] == []


def test_a_new_number_of_readme_that_nothing_backs(copy):
    change(copy / "README.md", "## Credits", "It is 7 times as fast.\n\n## Credits")
    (found,) = problems(copy)
    assert found.startswith("unbacked: '7 times' in README.md")


def test_the_code_before_a_backing_cell(copy):
    change(copy / BOOK_5, "link=20e6", "link=30e6")
    later = problems(copy)  # every backing cell that stands below it
    assert [text for text in later if "workload_sha256" not in text] == []
    assert [re.search(r"claim (\S+):", text)[1] for text in later] == ["05-gain"]


def test_the_costs_of_the_virtual_clock(monkeypatch):
    monkeypatch.setattr("benchmarks.claims.arithmetic.Speeds", lambda: Speeds(step=61_000_000))
    assert any("claim 02-clock: quotes" in text for text in problems())


def test_the_costs_of_the_twin(monkeypatch):
    """Rows that cost more change the gain; H of one prompt knows nothing of steps."""
    monkeypatch.setattr(ledger, "found", found.__wrapped__)  # not what is kept for the process
    monkeypatch.setattr(simulated, "crowded", cache(simulated.crowded.__wrapped__))
    monkeypatch.setattr(simulated, "SPREADS", (0.0,))
    slow = replace(hardware.DEVICES["l4"], fit=replace(hardware.DEVICES["l4"].fit, row_s=1e-3))
    monkeypatch.setitem(hardware.DEVICES, "l4", slow)
    everything = claims_file.load()
    claims = {claim.id: claim for claim in everything.claims}
    stale, same = (ledger.entry(claims[name], everything) for name in ("report-20x", "report-overlap"))
    assert stale["values"] != kept()[stale["id"]]["values"] and stale["quotes"] != kept()[stale["id"]]["quotes"]
    assert same == kept()[same["id"]]


def test_a_setting_that_is_gone(copy):
    change(copy / "docs/teaching.md", "the slider at 2 MB/s", "the slider")
    (text,) = problems(copy)
    assert "the slider at 2 MB/s" in text and "as the setting" in text


# ---- refreshing ------------------------------------------------------------------------------------------------------


def test_refresh_puts_a_new_measurement_into_its_page(copy):
    change(copy / "figures/measured/demo.json", '"value": 4.58', '"value": 4.44')
    assert refresh(copy) == [] == problems(copy)
    assert "| 4.44 s | 50 ms |" in (copy / "docs/measured.md").read_text(encoding="utf-8")
    assert kept(copy)["ladder"]["values"]["ttft_p50_s[baseline]"] == 4.44


def test_refresh_fills_in_a_template(copy):
    page = copy / "docs/measured.md"
    claim = next(claim for claim in claims_file.load(copy).claims if claim.id == "two-h200")
    before = page.read_text(encoding="utf-8")
    change(page, kept(copy)["two-h200"]["quotes"][0], claim.quotes[0])
    assert "{pair_law_error_points[max]" in page.read_text(encoding="utf-8")
    assert refresh(copy) == []
    assert page.read_text(encoding="utf-8") == before


def test_refresh_keeps_what_has_not_changed(copy):
    before = (copy / "README.md").read_bytes(), (copy / "figures/claims.json").read_bytes()
    assert refresh(copy) == []
    assert before == ((copy / "README.md").read_bytes(), (copy / "figures/claims.json").read_bytes())


def test_refresh_writes_nothing_where_an_origin_is_missing(copy):
    (copy / "figures/measured/demo.json").unlink()
    before = (copy / "figures/claims.json").read_bytes()
    (text,) = refresh(copy)
    assert "figures/measured/demo.json: FileNotFoundError" in text
    assert (copy / "figures/claims.json").read_bytes() == before


# ---- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, numbers",
    [
        ("It takes 1,024 ms, or 3.5 s, at 60 % of 2 GB/s.", ["1,024 ms", "3.5 s", "60 %", "2 GB/s"]),
        ("a gain of 20x and −0.5 points; 4e-5 off", ["20x", "−0.5 points", "4e-5"]),
        ("| `a` | 16.3 | 4 | x |", ["16.3", "4"]),
        ("`10 ms` in code, 37 % 16 = 5, 8 × 16 tokens, max(0, x), arXiv 2401.09670", []),
        ("```sh\nsleep 5 s\n```\n$$2x = 3 ms$$", []),
        ("eight layers, 30 layers, notebook 05", []),
    ],
)
def test_which_numbers_are_scanned(text, numbers):
    assert numbers_in(text) == numbers


def test_a_quote_covers_its_numbers_across_lines():
    passage = Passage("README.md", "", one_line("one wire\nof 3 GB/s"))
    assert passage.spans(["wire of 3\n GB/s"]) == [(4, 18)]


def test_arithmetic_and_nothing_else():
    assert evaluated({"e": "8 + 29 * (8 - 2)", "h": "1 - 1 / layers", "H": "H(28, 1)"}) == {
        "e": 182, "h": 1 - 1 / 30, "H": 27 / 28
    }  # fmt: skip
    for text in ("__import__('os')", "'a' * 9", "layers.real", "2 ** 9999", "unknown", "1 / 0", "H(layers=3)"):
        with pytest.raises(FileError, match="cannot be worked out"):
            evaluated({"e": text})


def test_numbers_with_scales():
    number = claims_file.Number(0.0504)
    assert f"{number:.0fms} {number:.1fpc} {number:.2f} {claims_file.Number(2.5e9):.1fG}" == "50 5.0 0.05 2.5"


def test_a_row_may_stand_beside_rows_of_its_name_with_brackets():
    found = claims_file.nested({"a[1]": 3, "a": 2, "b[x,0.3]": 5})
    assert "{a} {a[1]} {b[x,0.3]}".format_map(found) == "2.0 3.0 5.0"


def test_what_is_measured_is_what_the_demo_serves():
    told = claims_file.load().measured["demo"]["workload"]
    assert told["prompt_tokens"] == list(demo.LENGTHS)
    assert (told["new_tokens"], told["spacing_s"]) == (demo.NEW_TOKENS, demo.SPACING_S)


def test_the_ladder_is_printed_a_rung_at_a_time(monkeypatch):
    monkeypatch.setattr(demo, "PRESETS", ("colocated", "split", "streamed"))
    lines: list[str] = []
    runs = demo.climb(load_model("tiny"), 1e8, lambda runs: lines.append(demo.last_rung(runs)))
    assert [line.split()[0] for line in lines] == list(runs) == ["colocated", "split", "streamed"]
    assert {len(line) for line in (*lines, demo.HEAD)} == {61}
    assert all(line.endswith(" yes") for line in lines) and " – " in lines[0], "nothing was handed off"
    assert re.fullmatch(r"–|[01]\.\d\d", lines[2].split()[-2]), "no share where copies queued on loaded cores"


def test_the_list_of_claims_has_words_and_commands():
    lines = ledger.listed()
    assert sum(line.startswith("    $ ") for line in lines) == len(ledger.kept())
    assert all(f"    {one_line(quote)}" in lines for row in ledger.kept().values() for quote in row["quotes"])


def test_the_reports_numbers_are_given_by_what_the_ledger_says():
    overlap, gain, fair = (found(name).values for name in ("overlap", "gain", "fair"))
    for percent in (60, 96):
        hidden = simulated.handed_off("streamed", 512, overlap[f"wire[{percent}]"] / 1e9).overlap(0).hidden
        assert hidden == pytest.approx(percent / 100, abs=0.002)
    assert overlap["wire[96]"] < PRESETS["pcie4x16"] / 30
    assert gain["dynamic[32]"] > 20 and round(gain["dynamic[4]"]) == 4
    assert gain["colocated[32]"] > 20 and gain["over_rival[32]"] < 1
    assert fair["rate_narrow"] * fair["gain"] == pytest.approx(fair["rate"]) and fair["rate_half"] * 2 == fair["rate"]
    for name in ("streamed", "narrow"):  # nine of ten, which is where goodput is read
        assert all(abs(share - 0.9) < 0.03 for share in found("fair").interval[f"met[{name}]"])
    assert found("fair").interval["met[half]"][0] > 0.95


def test_the_command(monkeypatch):
    run = CliRunner().invoke(app, ["claims", "--check"])
    assert run.exit_code == 0 and "come out as they are stored" in " ".join(run.output.split())
    run = CliRunner().invoke(app, ["claims", "--only", "report-fair", "--json"])
    assert json.loads(run.output)["verdict"] == "refuted"
    assert isinstance(CliRunner().invoke(app, ["claims", "--only", "nonsense"]).exception, FileError)
    monkeypatch.setattr(ledger, "problems", lambda: ["stale: a test"])
    run = CliRunner().invoke(app, ["claims", "--check"])
    assert run.exit_code == 1 and "stale: a test" in run.output


@pytest.mark.parametrize(
    "row, match",
    [
        ('file = "README.md"\nquotes = []', "needs one of"),
        ('file = "README.md"\nquotes = []\nfound = "x"\nverdct = "refuted"', "unknown"),
        ('file = "README.md"\nquotes = []\nfound = "x"\nverdict = "true"', "the verdict is one of"),
        ("", "needs one of"),
        ("[claim.a]", "TOMLDecodeError"),
        ("file = ", "TOMLDecodeError"),
    ],
)
def test_a_wrong_entry_is_refused_in_words(tmp_path, row, match):
    path = tmp_path / "benchmarks/claims/claims.toml"
    path.parent.mkdir(parents=True)
    path.write_text(f"[claim.a]\n{row}\n", encoding="utf-8")
    with pytest.raises(FileError, match=match):
        claims_file.load(tmp_path)


def test_a_setting_needs_a_reason(tmp_path):
    path = tmp_path / "benchmarks/claims/claims.toml"
    path.parent.mkdir(parents=True)
    path.write_text('[setting."README.md"]\n" " = ["3 s"]\n', encoding="utf-8")
    with pytest.raises(FileError, match="without a reason"):
        claims_file.load(tmp_path)
    assert replace(claims_file.load().settings[0], reason="x").reason == "x"
