"""Arrivals from traces, read whole or refused with file and line, and by chance, the same for a seed."""

import gzip
import json
import math
import os
import re
import statistics
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import disagg
from disagg import Config, Request, simulate
from disagg.plan.errors import RequestError, TraceError
from disagg.trace import files
from disagg.twin.traces import Arrival, read_trace, scaled
from disagg.twin.workloads import (
    MOST_BLOCKS,
    Lengths,
    bursts,
    common,
    conversations,
    day,
    poisson,
    requests_of,
    reusable_tokens,
)

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


def test_azure_rows_also_packed(tmp_path):
    (tmp_path / "trace.csv.gz").write_bytes(gzip.compress(AZURE.encode()))
    first, second = read_trace(file_of(tmp_path, AZURE))
    assert read_trace(tmp_path / "trace.csv.gz") == [first, second]
    assert first == Arrival(0.0, 4808, 10)
    assert second[1:4] == (3180, 8, ()) and second.at_s == pytest.approx(0.052, abs=1e-6)


def test_columns_may_stand_in_any_order_beside_others(tmp_path):
    text = "who,GeneratedTokens,TIMESTAMP,ContextTokens\nx,10,2024-05-10T00:00:00+00:00,5\n"
    text += "y,1,2024-05-10 02:00:01+02:00,6"
    assert read_trace(file_of(tmp_path, text)) == [Arrival(0.0, 5, 10), Arrival(1.0, 6, 1)]


def test_mooncake_rows_with_their_blocks(tmp_path):
    found = read_trace(file_of(tmp_path, jsonl(MOONCAKE), "trace.jsonl"))
    assert found == [Arrival(0.0, 6955, 52, (*range(46, 60),)), Arrival(1.5, 20, 0)]


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
    with pytest.raises(TraceError, match="trace.csv.*" + re.escape(words)):
        read_trace(file_of(tmp_path, text))


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
    with pytest.raises(TraceError, match=re.escape(words)):
        read_trace(file_of(tmp_path, jsonl(rows), "trace.jsonl"))


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
    line = "4" if bound == "MOST_LINES" else "[234]"
    with pytest.raises(TraceError, match=rf"line {line}: more than .* not taken in"):
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


PROMPT, NEW = Lengths(300, 1.0, most=4000), Lengths(40, 0.5)
KINDS = {"poisson": poisson, "bursts": bursts, "day": day, "conversations": conversations}


def gaps(arrivals) -> list[float]:
    return [b.at_s - a.at_s for a, b in zip(arrivals, arrivals[1:], strict=False)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_says_it_all(kind):
    make = KINDS[kind]
    assert make(50, 3, PROMPT, NEW, seed=4) == make(50, 3, PROMPT, NEW, seed=4) != make(50, 3, PROMPT, NEW, seed=5)


@pytest.mark.parametrize(("kind", "variation"), [("poisson", 1.0), ("bursts", 3.0)])
def test_rate_and_variation_are_what_was_asked_for(kind, variation):
    found = gaps(KINDS[kind](20_000, 5, PROMPT, NEW))
    error = variation / 5 / math.sqrt(len(found))
    assert statistics.mean(found) == pytest.approx(1 / 5, abs=3 * error)
    assert statistics.stdev(found) * 5 == pytest.approx(variation, rel=0.15)


def test_a_day_has_more_at_its_height():
    found = day(40_000, 1, PROMPT, NEW, swing=0.8, day_s=1000)
    rising = sum(math.sin(2 * math.pi * a.at_s / 1000) > 0 for a in found)
    assert rising / len(found) == pytest.approx(0.5 + 0.8 / math.pi, abs=0.01)


def test_half_of_the_lengths_are_below_the_median_and_some_far_above():
    lengths = [a.prompt_tokens for a in poisson(5000, 1, PROMPT, NEW)]
    assert statistics.median(lengths) == pytest.approx(300, rel=0.06)
    assert max(lengths) == 4000 and min(lengths) >= 1 and sum(n > 1000 for n in lengths) > 400
    assert {a.new_tokens for a in poisson(50, 1, PROMPT, Lengths(7))} == {7}


MAKE_ALL = """
import hashlib
from disagg.twin.workloads import *
sizes = Lengths(30, 1.0), Lengths(4, 0.5)
made = conversations(2, 1, *sizes, system=7)
made += [arrival for make in (poisson, bursts, day) for arrival in make(5, 3, *sizes, seed=4)]
print(hashlib.sha256(repr((made, requests_of(made, 1000))).encode()).hexdigest())
"""


def test_a_seed_gives_the_same_bytes_in_any_process():
    """Whatever Python's own hashes of text are."""
    root = str(Path(disagg.__file__).parent.parent)
    said = [
        subprocess.run([sys.executable, "-c", MAKE_ALL], capture_output=True, text=True, check=True,
                       env={**os.environ, "PYTHONHASHSEED": hashes, "PYTHONPATH": root}).stdout.strip()
        for hashes in ("1", "2")
    ]  # fmt: skip
    space: dict = {}
    exec(MAKE_ALL.replace("print(", "said = ("), space)
    assert len(said[0]) == 64 and said == [space["said"]] * 2


@settings(max_examples=20)
@given(st.floats(0.3, 4), st.floats(0.01, 1000), st.integers(0, 99))
def test_bursts_have_the_variation_that_was_declared(variation, per_s, seed):
    found = gaps(bursts(4000, per_s, Lengths(1), Lengths(1), seed, variation))
    mean = statistics.mean(found)
    assert mean * per_s == pytest.approx(1, abs=5 * variation / math.sqrt(len(found)))
    assert statistics.stdev(found) / mean == pytest.approx(variation, rel=0.3), "the tail is long, and rarely drawn"


@settings(max_examples=20)
@given(st.floats(0, 1), st.integers(0, 99))
def test_a_days_counts_follow_its_curve(swing, seed):
    """Quarters of a period hold the curve's share, within five deviations of a count."""
    found = day(4000, 4, Lengths(1), Lengths(1), seed, swing, day_s=100)
    whole = [a.at_s % 100 // 25 for a in found if a.at_s < found[-1].at_s // 100 * 100]
    for quarter, sign in enumerate((1, 1, -1, -1)):
        expected = len(whole) * (0.25 + sign * swing / (2 * math.pi))
        assert whole.count(quarter) == pytest.approx(expected, abs=5 * math.sqrt(len(whole) / 4) + 1)


def of_conversation(arrivals: list[Arrival], number: int) -> list[Arrival]:
    return [a for a in arrivals if (a.blocks[-1] - 1) // MOST_BLOCKS == number]


def test_a_conversation_is_said_again_with_each_question():
    found = conversations(3, 1, Lengths(20), Lengths(5), turns=3)
    assert len(found) == 9 and [a.at_s for a in found] == sorted(a.at_s for a in found)
    assert [a.prompt_tokens for a in of_conversation(found, 0)] == [20, 45, 70]
    firsts = [requests_of(of_conversation(found, number), vocab=1000)[0].prompt for number in range(3)]
    assert common(firsts[0], firsts[1]) < 3 and common(firsts[0], firsts[2]) < 3, "nothing is shared between two"


@settings(max_examples=50)
@given(st.integers(0, 700), st.integers(1, 900), st.floats(0.05, 3), st.floats(0.1, 10), st.integers(0, 9))
def test_a_turns_prompt_begins_with_all_that_was_said(system, asked, lengths, rate, seed):
    """And with the common system prompt; scaling the lengths keeps both."""
    found = conversations(2, 1, Lengths(asked, 0.5), Lengths(30, 0.5), seed, turns=3, system=system)
    for arrivals in (found, scaled(found, lengths, rate)):
        turns = [requests_of(of_conversation(arrivals, number), vocab=50_000) for number in range(2)]
        for requests in turns:
            assert len(requests) == 3
            for before, after in pairwise(requests):
                assert after.prompt[: len(before.prompt)] == before.prompt
        one, other = (requests[-1].prompt for requests in turns)
        shared = math.ceil(system * (1 if arrivals is found else lengths))
        assert min(shared, len(one), len(other)) <= common(one, other) <= shared + 2


def test_mooncakes_blocks_of_one_hash_are_alike_and_what_has_no_block_is_drawn_alone(tmp_path):
    rows = [{"timestamp": 0, "input_length": 1100, "output_length": 1, "hash_ids": [7, 8, 9]},
            {"timestamp": 1000, "input_length": 1536, "output_length": 1, "hash_ids": [7, 8, 10]},
            {"timestamp": 2000, "input_length": 600, "output_length": 1, "hash_ids": [11, 8]}]  # fmt: skip
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for factor in (1.0, 0.5):
        block = round(512 * factor)
        one, two, three = (r.prompt for r in requests_of(scaled(read_trace(path), factor), vocab=50_000))
        assert [len(one), len(two), len(three)] == [1100 * factor, 1536 * factor, 600 * factor]
        assert common(one, two) == 2 * block, "and nothing after them"
        assert common(two, three) == 0 and three[block:] == two[block : len(three)], "8 is 8 wherever it stands"
    one, two = (r.prompt for r in requests_of([Arrival(0.0, 700, 1, (5,)), Arrival(0.0, 700, 1, (5,))], vocab=50_000))
    assert common(one, two) == 512


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), max_size=8))
def test_an_ideal_cache_saves_the_longest_beginning_that_was_there(prompts):
    requests = [Request(prompt, 1, arrival_s=float(index)) for index, prompt in enumerate(prompts)]
    saved = sum(
        min(len(prompt) - 1, max((common(prompt, other) for other in prompts[:index]), default=0))
        for index, prompt in enumerate(prompts)
    )
    assert reusable_tokens(reversed(requests)) == saved


def test_conversations_are_mostly_said_before_and_strangers_share_nothing():
    asked = requests_of(conversations(5, 1, Lengths(50), Lengths(50), turns=4, system=200), vocab=50_000)
    assert reusable_tokens(asked) == 4 * 200 + 5 * (250 + 350 + 450), "a system prompt is new once; an answer always"
    assert reusable_tokens(requests_of(poisson(9, 1, Lengths(99), Lengths(1)), vocab=10**9)) == 0


@given(st.integers(1, 40), st.floats(0.1, 100), st.integers(0, 9))
def test_whatever_comes_is_served(count, per_s, seed):
    arrivals = bursts(count, per_s, Lengths(30, 1.0, most=200), Lengths(4, 0.5, most=20), seed)
    requests = requests_of(arrivals, vocab=100, seed=seed, most=64)
    assert all(len(r.prompt) + r.max_new_tokens <= 64 + 20 for r in requests)
    run = simulate(Config.preset("streamed"), requests)
    assert [len(result.token_ids) for result in run.results] == [r.max_new_tokens for r in requests]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: poisson(0, 1, PROMPT, NEW), "count must be a whole number, 1 to 10,000,000; got 0"),
        (lambda: poisson(5, 0, PROMPT, NEW), "per_s must be requests a second, above 0; got 0"),
        (lambda: poisson(5, math.nan, PROMPT, NEW), "per_s must be requests a second, above 0; got nan"),
        (lambda: bursts(5, 1, PROMPT, NEW, variation=0), "variation must be a number from 0.05 to 20; got 0"),
        (lambda: day(5, 1, PROMPT, NEW, swing=2), "swing must be a number from 0 to 1; got 2"),
        (lambda: conversations(5, 1, PROMPT, NEW, turns=0), "turns must be a whole number, 1 to 1,000; got 0"),
        (lambda: conversations(5, 1, PROMPT, NEW, system=-1), "system must be a whole number, 0 to 1,000,000; got -1"),
        (lambda: conversations(5, 1, PROMPT, NEW, pause_s=0), "pause_s must be seconds, above 0; got 0"),
        (lambda: day(5, "1", PROMPT, NEW), "per_s must be requests a second, above 0; got '1'"),
        (lambda: day(5, 1, PROMPT, NEW, day_s=0), "day_s must be seconds, above 0; got 0"),
        (lambda: scaled([], rate=0), "rate must be a factor above 0, as 0.5 or 2; got 0"),
        (lambda: scaled([], lengths=math.nan), "lengths must be a factor above 0, as 0.5 or 2; got nan"),
        (lambda: Lengths(0), "a median of 1 token or more"),
        (lambda: Lengths(5, least=9, most=3), "1 ≤ least ≤ most; got 9 and 3"),
        (lambda: requests_of(poisson(1, 1, PROMPT, NEW), vocab=0), "vocab must be a whole number"),
    ],
)
def test_what_cannot_be_is_said(call, words):
    with pytest.raises(RequestError, match=re.escape(words)):
        call()


def test_a_prompt_is_cut_to_what_its_answer_leaves_of_a_context():
    long, short = requests_of([Arrival(0.0, 100, 10), Arrival(1.0, 20, 10)], vocab=50, most=60)
    assert (len(long.prompt), len(short.prompt)) == (50, 20)
