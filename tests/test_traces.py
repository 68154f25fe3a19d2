"""Traces of arrivals: two formats, read whole or refused with file and line; scaled by factors that are said."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg.plan.errors import TraceError
from disagg.trace import files
from disagg.twin.traces import Arrival, read_trace, scaled

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
AZURE = HEADER + "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.0319600,3180,8\n"
MOONCAKE = [
    {"timestamp": 0, "input_length": 6955, "output_length": 52, "hash_ids": [*range(46, 60)]},
    {"timestamp": 1500, "input_length": 20, "output_length": 0, "hash_ids": []},
]
SHARED = Path(__file__).resolve().parents[2] / "shared" / "traces"


def file_of(folder: Path, text: str, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def jsonl(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_azure_rows(tmp_path):
    first, second = read_trace(file_of(tmp_path, AZURE))
    assert first == Arrival(0.0, 4808, 10)
    assert second[1:4] == (3180, 8, ()) and second.at_s == pytest.approx(0.052, abs=1e-6)


def test_columns_may_stand_in_any_order_beside_others(tmp_path):
    text = (
        "who,GeneratedTokens,TIMESTAMP,ContextTokens\nx,10,2024-05-10T00:00:00+00:00,5\ny,1,2024-05-10 02:00:01+02:00,6"
    )
    assert read_trace(file_of(tmp_path, text)) == [Arrival(0.0, 5, 10), Arrival(1.0, 6, 1)]


def test_mooncake_rows_with_their_blocks(tmp_path):
    found = read_trace(file_of(tmp_path, jsonl(MOONCAKE), "trace.jsonl"))
    assert found == [Arrival(0.0, 6955, 52, (*range(46, 60),)), Arrival(1.5, 20, 0)]


def test_a_packed_trace_is_the_same(tmp_path):
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress(AZURE.encode()))
    assert read_trace(path) == read_trace(file_of(tmp_path, AZURE))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no arrival"),
        (HEADER, "holds no arrival"),
        (
            "TIMESTAMP,ContextTokens\n",
            "line 1: the column GeneratedTokens is missing; found 'TIMESTAMP, ContextTokens'",
        ),
        (HEADER + "2023-11-16 18:17:03,1\n", "line 2: 2 cells are fewer than the header's"),
        (HEADER + "yesterday,1,1\n", "line 2: TIMESTAMP 'yesterday' is no date and time"),
        (HEADER + "2023-11-16 18:17:03,-1,1\n", "line 2: ContextTokens must be tokens, 0 to 10,000,000; got '-1'"),
        (HEADER + "2023-11-16 18:17:03,1,1e3\n", "line 2: GeneratedTokens must be tokens, 0 to 10,000,000; got '1e3'"),
        (HEADER + "2023-11-16 18:17:03,1," + "9" * 5000 + "\n", "line 2: GeneratedTokens must be tokens"),
        (AZURE + "2023-11-16 18:17:00,1,1\n", "line 4: it came 4.03196 s before the line above; sort the trace"),
        (HEADER + '2023-11-16 18:17:03,"1,1\n', "line 2: it is not CSV"),
        (HEADER + "2023-11-16 18:17:03,1,1" + " " * 70_000, "line 2 is longer than 65536 bytes"),
    ],
)
def test_a_wrong_azure_file_is_refused_with_its_line(tmp_path, text, words):
    with pytest.raises(TraceError) as caught:
        read_trace(file_of(tmp_path, text))
    assert words in str(caught.value) and "trace.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"timestamp": -1, "input_length": 1, "output_length": 1}], "line 1: timestamp must be in ms"),
        ([{"timestamp": True, "input_length": 1, "output_length": 1}], "line 1: timestamp must be in ms"),
        ([MOONCAKE[0], {"timestamp": 5, "output_length": 1}], "line 2: input_length must be tokens"),
        ([{**MOONCAKE[0], "input_length": 2.5}], "line 1: input_length must be tokens, 0 to 10,000,000; got 2.5"),
        ([{**MOONCAKE[0], "hash_ids": ["a"]}], "line 1: hash_ids must be a list of whole numbers from 0; got ['a']"),
        (MOONCAKE[::-1], "line 2: it came 1.5 s before the line above"),
    ],
)
def test_a_wrong_mooncake_file_is_refused_with_its_line(tmp_path, rows, words):
    with pytest.raises(TraceError) as caught:
        read_trace(file_of(tmp_path, jsonl(rows), "trace.jsonl"))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [("[" * 50 + "]" * 50 + "\n", "brackets stand more than 8 deep"), ('{"timestamp": NaN}\n', "not a finite number"),
     ('{"timestamp": 1, "timestamp": 2}\n', "'timestamp' stands twice"), ("{", "cut off")],
)  # fmt: skip
def test_bounds_of_json_hold_for_traces_too(tmp_path, text, words):
    with pytest.raises(TraceError, match=words):
        read_trace(file_of(tmp_path, text, "trace.jsonl"))


@pytest.mark.parametrize("name", ["trace.csv", "trace.jsonl", "trace.csv.gz"])
@pytest.mark.parametrize(("bound", "most"), [("MOST_LINES", 3), ("MOST_BYTES", 140)])
def test_rows_and_bytes_are_bounded(tmp_path, monkeypatch, name, bound, most):
    text = AZURE + AZURE.splitlines()[-1] + "\n" if ".csv" in name else jsonl([{**MOONCAKE[0], "hash_ids": []}] * 4)
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    assert len(read_trace(path)) >= 3
    monkeypatch.setattr(files, bound, most)
    with pytest.raises(
        TraceError, match=rf"line {'4' if bound == 'MOST_LINES' else '[234]'}: more than .* not taken in"
    ):
        read_trace(path)


def test_a_missing_or_broken_trace_is_reported(tmp_path):
    with pytest.raises(TraceError, match=r"is no trace: take Azure's \.csv or Mooncake's \.jsonl"):
        read_trace(file_of(tmp_path, AZURE, "trace.zip"))
    with pytest.raises(TraceError, match="can't be read: No such file"):
        read_trace(tmp_path / "none.csv")
    (tmp_path / "bytes.csv").write_bytes(HEADER.encode() + b"\xff\xfe,1,1\n")
    with pytest.raises(TraceError, match="line 2: it is not UTF-8 text"):
        read_trace(tmp_path / "bytes.csv")


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 99_999), st.integers(0, 9999)), min_size=1), st.data())
def test_scaling_keeps_the_order_and_all_requests(rows, data):
    arrivals = [Arrival(ms / 1e3, prompt, new) for ms, prompt, new in sorted(rows)]
    lengths, rate = data.draw(st.floats(0.01, 10)), data.draw(st.floats(0.01, 10))
    found = scaled(arrivals, lengths, rate)
    assert len(found) == len(arrivals) and all(a.at_s <= b.at_s for a, b in zip(found, found[1:], strict=False))
    for one, other in zip(arrivals, found, strict=True):
        assert other.at_s == one.at_s / rate and other.prompt_tokens == max(1, round(one.prompt_tokens * lengths))


@pytest.mark.parametrize(("name", "count", "first"), [("code", 8819, (4808, 10)), ("conv", 19_366, (374, 44))])
def test_azures_own_files_are_read_whole(name, count, first):
    path = SHARED / f"AzureLLMInferenceTrace_{name}.csv"
    if not path.exists():
        pytest.skip("the trace is not beside this checkout; https://github.com/Azure/AzurePublicDataset has it")
    found = read_trace(path)
    assert len(found) == count and found[0] == Arrival(0.0, *first)
    assert 3400 < found[-1].at_s < 3600, "an hour"


UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5000)), min_size=3, max_size=6),
    st.sampled_from(sorted(UNITS)), st.sampled_from([16, 64, 512]),
)  # fmt: skip
def test_a_trace_is_read_in_its_own_unit_and_blocks_or_asks_for_them(tmp_path_factory, gaps, unit, size):
    """Seconds in whole numbers, over hours, are the one unit that nothing contradicts; it is drawn with fractions."""
    at_s, rows = 0.25, []
    for gap, tokens in [(0, 5000), (2, 5000), *gaps]:
        at_s += gap
        hashes, stamp = list(range(-(-tokens // size))), at_s * UNITS[unit]
        rows.append({"timestamp": stamp, "input_length": tokens, "output_length": 1, "hash_ids": hashes})
    path = file_of(tmp_path_factory.mktemp("trace"), jsonl(rows), "trace.jsonl")
    told = read_trace(path, unit=unit, block_tokens=size)
    assert told[-1].at_s == pytest.approx(at_s - 0.25) and {arrival.block_tokens for arrival in told} == {size}
    for how, right in (({"block_tokens": size}, unit == "ms"), ({"unit": unit}, size == 512)):
        if right:
            assert read_trace(path, **how) == told
        elif unit != "us" or "unit" in how:
            with pytest.raises(TraceError, match="Say .*read_trace"):
                read_trace(path, **how)


def test_bailians_rows_are_known_by_their_chats_and_read_with_their_unit(tmp_path):
    row = {"chat_id": 1, "parent_chat_id": -1, "timestamp": 61.1, "input_length": 400, "output_length": 20,
           "type": "text", "turn": 1, "hash_ids": list(range(25))}  # fmt: skip
    path = file_of(tmp_path, jsonl([row, {**row, "timestamp": 183.3}]), "trace.jsonl")
    first, last = read_trace(path, unit="s", block_tokens=16)
    assert (last.at_s, last.block_tokens, len(last.blocks)) == (pytest.approx(122.2), 16, 25)
    plain = {name: value for name, value in row.items() if name != "chat_id"}
    for rows, words in (
        ([row], "rows with a chat_id are Bailian's"),
        ([plain], "timestamp 61.1 is no whole number of ms"),
        ([{**plain, "timestamp": 61}], "25 hash_ids for 400 tokens are not of blocks of 512 tokens, which would be 1"),
        ([{**plain, "timestamp": at, "hash_ids": []} for at in (0, 61, 122)], "3 requests came within 0.122 s"),
    ):
        with pytest.raises(TraceError, match=words):
            read_trace(file_of(tmp_path, jsonl(rows), "other.jsonl"))


@pytest.mark.parametrize(
    ("how", "words"),
    [({"unit": "h"}, "unit must be one of s, ms"), ({"block_tokens": 0}, "1 to 10"), ({"unit": "s"}, "leave out unit")],
)
def test_an_impossible_unit_is_refused(tmp_path, how, words):
    with pytest.raises(TraceError, match=words):
        read_trace(file_of(tmp_path, AZURE), **how)
