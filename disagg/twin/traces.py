"""Recorded arrivals: when a request came, and the lengths of its prompt and its answer.

Azure's LLM inference traces are CSV: TIMESTAMP, ContextTokens, GeneratedTokens (Patel and others, Splitwise, 2024).
Mooncake's are JSON lines: timestamp in ms, input_length, output_length, hash_ids of blocks of 512 tokens (Qin and
others, 2024). Bailian's have these fields in seconds and blocks of 16: unit and block size then have to be given.
"""

import csv
import math
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from disagg.plan.checks import is_number, is_whole, short
from disagg.plan.errors import FileError, RequestError, TraceError
from disagg.trace.files import json_lines, lines

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")  # Azure's
LINE_BYTES = 2**16
MOST_TOKENS = 10_000_000  # of one request
MOST_BLOCK = 2**64  # no hash is longer
_STAMP = re.compile(
    r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d):([0-5]\d|60)(\.\d{1,12})?(?:Z|([+-])([01]\d):([0-5]\d))?", re.ASCII
)
MOST_S = 10**9  # of a timestamp: 31 years
UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}  # to a second
MOONCAKE = ("ms", 512)  # unit of timestamps, tokens of a block
SHORTEST_S, LONGEST_GAP_S = 1.0, 3600.0  # limits on a trace's length and on its mean gap, if the unit is right


class Arrival(NamedTuple):
    """One request of a trace. `blocks` names its prompt's blocks if they are known: equal names are equal text."""

    at_s: float  # since the first one
    prompt_tokens: int
    new_tokens: int
    blocks: tuple[int, ...] = ()
    block_tokens: int = 512  # of each but the prompt's last one


def read_trace(path: str | os.PathLike[str], unit: str | None = None, block_tokens: int | None = None) -> list[Arrival]:
    """The arrivals of a file: .csv is Azure's format, .jsonl Mooncake's, and either may be packed (.gz). `unit` ("s",
    "ms", "us", "ns") and `block_tokens` are for a .jsonl that differs from Mooncake's. TraceError."""
    if unit is not None and unit not in UNITS:
        raise TraceError(f"unit must be one of {', '.join(UNITS)}; got {short(unit)}")
    if block_tokens is not None and (not is_whole(block_tokens) or not 1 <= block_tokens <= MOST_TOKENS):
        raise TraceError(f"block_tokens must be a whole number, 1 to {MOST_TOKENS:,}; got {short(block_tokens)}")
    path = Path(path)
    name = path.name.removesuffix(".gz")
    if not name.endswith((".csv", ".jsonl")):
        raise TraceError(f"{path} is no trace: take Azure's .csv or Mooncake's .jsonl, as they are or packed (.gz)")
    if name.endswith(".csv") and (unit or block_tokens):
        raise TraceError(f"{path}: Azure's .csv has dates and no blocks; leave out unit and block_tokens")
    try:
        rows = _azure(path) if name.endswith(".csv") else _json_rows(path, unit, block_tokens)
        arrivals = _from_zero(path, rows)
    except TraceError:
        raise
    except FileError as error:
        raise TraceError(str(error)) from None
    if name.endswith(".jsonl") and unit is None:
        _check_span(path, arrivals)
    return arrivals


def scaled(arrivals: list[Arrival], lengths: float = 1.0, rate: float = 1.0) -> list[Arrival]:
    """The trace with lengths and arrival rate multiplied; every request keeps at least one token, and common prefixes
    stay common. RequestError for an impossible factor."""
    for name, factor in (("lengths", lengths), ("rate", rate)):
        if not is_number(factor, 1e-9, 1e9):
            raise RequestError(f"{name} must be a factor above 0, as 0.5 or 2; got {short(factor)}")

    def scale(arrival: Arrival) -> Arrival:
        prompt, new = (max(1, round(tokens * lengths)) for tokens in arrival[1:3])
        return Arrival(arrival.at_s / rate, prompt, new, arrival.blocks, math.ceil(arrival.block_tokens * lengths))

    return [scale(arrival) for arrival in arrivals]


Rows = Iterator[tuple[int, Arrival]]  # line number, and an arrival in seconds from any origin


def _azure(path: Path) -> Rows:
    places: list[int] = []
    for number, line in enumerate(lines(path, LINE_BYTES), 1):
        cells = _cells(path, number, line)
        if number == 1:
            for name in COLUMNS:
                if name not in cells:
                    raise _wrong(path, 1, f"the column {name} is missing; found {short(', '.join(cells))}")
                if cells.count(name) > 1:
                    raise _wrong(path, 1, f"the column {name} stands twice")
            places = [cells.index(name) for name in COLUMNS]
        elif cells:  # the last line may be empty
            if len(cells) <= max(places):
                raise _wrong(path, number, f"{len(cells)} cells are fewer than the header's")
            stamp, *counts = (cells[place] for place in places)
            at_s = _seconds(path, number, stamp)
            prompt, new = (_count(path, number, *pair) for pair in zip(COLUMNS[1:], map(_number, counts), strict=True))
            yield number, Arrival(at_s, prompt, new)


def _seconds(path: Path, number: int, stamp: str) -> float:
    """Seconds of a date and time, in UTC if no zone is given. A second may be a leap second."""
    try:
        if (found := _STAMP.fullmatch(stamp)) is None:
            raise ValueError
        minute = datetime.fromisoformat(found[1]).replace(tzinfo=UTC)
    except ValueError:
        what = f"TIMESTAMP {short(stamp)} is no date and time as in 2023-11-16 18:17:03.9799600"
        raise _wrong(path, number, what) from None
    _, seconds, fraction, sign, hours, minutes = found.groups()
    zone_s = 60 * (60 * int(hours) + int(minutes)) * (1 if sign == "+" else -1) if sign else 0
    return round(minute.timestamp()) + int(seconds) - zone_s + float(fraction or 0)


def _cells(path: Path, number: int, line: bytes) -> list[str]:
    try:
        return next(csv.reader([line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")], strict=True), [])
    except UnicodeDecodeError as error:
        raise _wrong(path, number, f"it is not UTF-8 text (byte {error.start + 1})") from None
    except csv.Error as error:
        raise _wrong(path, number, f"it is not CSV ({error})") from None


def _json_rows(path: Path, unit: str | None, block_tokens: int | None) -> Rows:
    """Rows with Mooncake's fields, in the given unit and block size."""
    usual_unit, both_given = unit is None, unit is not None and block_tokens is not None
    unit, block_tokens = unit or MOONCAKE[0], block_tokens or MOONCAKE[1]
    for number, row in json_lines(path, LINE_BYTES):
        if "chat_id" in row and not both_given:
            raise _wrong(path, number, f"rows with a chat_id are Bailian's, not Mooncake's. {_ASK_BOTH}")
        stamp: Any = row.get("timestamp")
        blocks = row.get("hash_ids", [])
        if not is_number(stamp, 0, MOST_S * UNITS[unit]):
            raise _wrong(path, number, f"timestamp must be in {unit}, from 0 to {MOST_S:,} s; got {short(stamp)}")
        if usual_unit and stamp != int(stamp):
            raise _wrong(path, number, f"timestamp {stamp} is no whole number of ms, Mooncake's unit. {_ASK_UNIT}")
        if not isinstance(blocks, list) or not all(is_whole(block) and 0 <= block < MOST_BLOCK for block in blocks):
            raise _wrong(path, number, f"hash_ids must be a list of whole numbers from 0; got {short(blocks)}")
        prompt, new = (_count(path, number, name, row.get(name)) for name in ("input_length", "output_length"))
        if blocks and len(blocks) not in (prompt // block_tokens, math.ceil(prompt / block_tokens)):
            raise _wrong(
                path,
                number,
                f"{len(blocks)} hash_ids for {prompt} tokens are not of blocks of {block_tokens} tokens, which would "
                f"be {math.ceil(prompt / block_tokens)}; they are of about {prompt / len(blocks):.0f}. {_ASK_BOTH}",
            )
        yield number, Arrival(stamp / UNITS[unit], prompt, new, tuple(blocks), block_tokens)


_ASK_UNIT = 'Say which it is, as in read_trace(path, unit="s")'
_ASK_BOTH = 'Say the unit and the tokens of a hash, as in read_trace(path, unit="s", block_tokens=16)'


def _check_span(path: Path, arrivals: list[Arrival]) -> None:
    """TraceError if the format's usual unit makes the trace too short or too long."""
    span_s, gaps = arrivals[-1].at_s, len(arrivals) - 1
    if 0 < span_s < SHORTEST_S or span_s > gaps * LONGEST_GAP_S:
        raise TraceError(
            f"{path}: read in its format's usual unit, {len(arrivals)} requests came within {span_s:g} s. {_ASK_UNIT}"
        )


def _number(cell: str) -> int | str:
    """The number in a cell of digits; else the cell unchanged."""
    return int(cell) if cell.isascii() and cell.isdecimal() and len(cell) < 20 else cell


def _count(path: Path, number: int, name: str, value: Any) -> int:
    if not is_whole(value) or not 0 <= value <= MOST_TOKENS:
        raise _wrong(path, number, f"{name} must be tokens, 0 to {MOST_TOKENS:,}; got {short(value)}")
    return int(value)


def _from_zero(path: Path, rows: Rows) -> list[Arrival]:
    """Arrivals with times from the first one on, which must not go back."""
    found: list[Arrival] = []
    for number, arrival in rows:
        if found and arrival.at_s < found[-1].at_s:
            early_s = found[-1].at_s - arrival.at_s
            raise _wrong(path, number, f"it came {early_s:g} s before the line above; sort the trace")
        found.append(arrival)
    if not found:
        raise TraceError(f"{path} holds no arrival")
    return [arrival._replace(at_s=arrival.at_s - found[0].at_s) for arrival in found]


def _wrong(path: Path, number: int, what: str) -> TraceError:
    return TraceError(f"{path}, line {number}: {what}")
