"""Recordings: a run or a timeline as a file of JSON lines, which never runs anything and is checked line by line.

A header, then a line for each span, mark, move, choice, placement and result, then a closing line that counts them, so
that a file that was cut off is noticed.
"""

import dataclasses
import json
import math
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Never

from disagg.plan.checks import short
from disagg.plan.commands import Placed
from disagg.plan.config import Config
from disagg.plan.errors import FileError, PolicyError
from disagg.plan.link import Link
from disagg.plan.policy import POLICIES, FirstCome, Option
from disagg.plan.preemption import Arm, Choice
from disagg.plan.request import Stage, Waiting
from disagg.trace import parts
from disagg.trace.files import inside, located, whole
from disagg.trace.schema import COUNTS, HEADER, SHAPES, Row, check
from disagg.trace.spans import BlockMove, Mark, Span

FORMAT, VERSION = "disagg", 1
OF_A_RUN = ("config", "machine", "counts", "padding", "peak_blocks", "interrupted")  # of the header
Records = Mapping[str, Collection[object]]  # kind of line → its records


def save(path: str | os.PathLike[str], header: Row, records: Records, overwrite: bool = False) -> None:
    """Writes a recording, whole or not at all: it gets its name once it has been read back without a fault.

    What is longer than one file may be goes into parts beside it (parts.py), which `load` reads as one."""
    path = Path(path)
    before: list[Path] = parts.named_in(path) if overwrite else []
    kept: list[Path] = []
    try:
        with whole(path, overwrite, check=lambda draft: _read(draft, path)) as file:
            parts.write(path, file, map(_line, _rows(header, records)), kept)
    except BaseException:
        for part in set(kept).difference(before):
            part.unlink(missing_ok=True)
        raise
    parts.remove_leftovers(path, kept, before)


def _rows(header: Row, records: Records) -> Iterator[Row]:
    yield {FORMAT: "recording", "version": VERSION, "holds": "run" if "config" in header else "timeline", **header}
    kept = {kind: list(records.get(kind, ())) for kind in SHAPES}
    for kind, found in kept.items():
        for record in found:
            yield SHAPES[kind].row(kind, record)
    yield {"end": {kind: len(found) for kind, found in kept.items()}}


def _line(row: Row) -> bytes:
    try:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=float)
        return line.encode("utf-8") + b"\n"
    except (TypeError, ValueError) as error:
        raise FileError(f"a {next(iter(row))} is not plain data: {error}") from None


@dataclass
class Recording:
    """What a file holds. A result is a row: the fields of a Result, and whether its spans were `recorded`."""

    header: Row = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    moves: list[BlockMove] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    placements: list[Placed] = field(default_factory=list)
    results: list[Row] = field(default_factory=list)


def load(path: str | os.PathLike[str], within: str | os.PathLike[str] | None = None, run: bool = False) -> Recording:
    """The records of a file; `within` is a folder that the path must not leave. FileError, also where a `run` is asked
    for and the file holds a timeline alone."""
    path = inside(path, within)
    found = _read(path)
    if run and found.header["holds"] == "timeline":
        raise FileError(f"{path} holds a timeline without its run; Timeline.load reads it")
    return found


def _read(path: Path, beside: Path | None = None) -> Recording:
    """`beside` is the name under which its parts stand, where it does not have that name yet."""
    reader, file, number = Reader(), path, 0
    for file, number, row in parts.rows_of(path, beside or path):
        try:
            reader.take(row)
        except FileError as error:
            raise located(file, number, error) from None
    if not reader.closed:
        raise FileError(f"{file}, after line {number}: it is cut off, the closing line is missing")
    return reader.found


class Reader:
    """Takes a recording's lines one after the other, and checks each against the lines before it."""

    def __init__(self) -> None:
        self.found = Recording()
        self.closed = False
        self._counts = dict.fromkeys(SHAPES, 0)

    def take(self, row: Row) -> None:
        kind = next(iter(row), None)
        if self.closed:
            raise FileError("the closing line is not the last one")
        if not self.found.header:
            return self._open(row)
        if kind == "end":
            return self._close(row)
        if kind is None or kind not in SHAPES:
            raise FileError(f"a line must start with {', '.join(SHAPES)} or end; got {short(kind)}")
        shape = SHAPES[kind]
        row[shape.stands_for] = row.pop(kind)
        check(row, shape.fields, shape.defaults)
        self._counts[kind] += 1
        match kind:
            case "span":
                self._span(row)
            case "mark":
                self._mark(row)
            case "move":
                self._move(row)
            case "choice":
                self.found.choices.append(Choice(**{**row, "arm": Arm(row["arm"])}))
            case "placement":
                options = [
                    Option(way, worker, tuple(map(tuple, terms)), onto) for way, worker, terms, onto in row["options"]
                ]
                self.found.placements.append(Placed(**{**row, "options": tuple(options)}))
            case "result":
                self._result(row)

    def _open(self, row: Row) -> None:
        if row.pop(FORMAT, None) != "recording":
            raise FileError("it does not begin as a recording of disagg")
        if row.get("version") != VERSION:
            raise FileError(
                f"version {short(row.get('version'))} is unknown here; this package reads version {VERSION}"
            )
        check(row, HEADER, OF_A_RUN if row.get("holds") == "timeline" else ())
        if row["holds"] == "run":
            config_from(row["config"])
        self.found.header = row

    def _close(self, row: Row) -> None:
        check(row, {"end": COUNTS})
        if dict.fromkeys(SHAPES, 0) | row["end"] != self._counts:  # an older file has fewer kinds
            raise FileError(f"the closing line counts {short(row['end'])}, but there are {self._counts}")
        self.closed = True

    def _span(self, row: Row) -> None:
        fields: Row = {name: tuple(value) if type(value) is list else value for name, value in row.items()}
        span = Span(**fields)
        if span.end_ns < span.start_ns:
            raise FileError(f"a span ends before it starts: start_ns {span.start_ns}, end_ns {span.end_ns}")
        self._known(span.place, "place", "devices")
        if not span.requests:
            raise FileError("a span has no requests; it is of one at least")
        marks = span.hand_offs_ns
        if marks and not span.start_ns <= marks[0] <= marks[-1] <= span.end_ns:
            raise FileError("a layer is handed off outside of its pass")
        if span.waits_ns and (len(span.waits_ns) != len(marks) or any(start > end for start, end in span.computing)):
            raise FileError("waits_ns is not one wait a hand-off, each over before the next one")
        if span.firsts and not set(span.firsts) <= set(span.requests):
            raise FileError("firsts names a request that is not among the span's requests")
        self.found.spans.append(span)

    def _mark(self, row: Row) -> None:
        if isinstance(row["value"], str) != row["name"].startswith("gate "):
            raise FileError(f"{short(row['name'])} is {short(row['value'])}: a gate has a name, all else a number")
        self.found.marks.append(Mark(**row))

    def _move(self, row: Row) -> None:
        pool, blocks, state, owner = row["pool"], row["blocks"], row["state"], row["owner"]
        self._known(pool, "pool", "sizes")
        if max(blocks, default=0) >= (size := self.found.header["sizes"][pool]):
            raise FileError(f"{pool} has {size} blocks; got block {max(blocks)}")
        if (owner is None) != (state == "free"):
            raise FileError(f"free blocks have no owner, and others have one; got {state} and owner {owner}")
        self.found.moves.append(BlockMove(row["at_ns"], pool, state, owner, tuple(blocks)))

    def _result(self, row: Row) -> None:
        ids, times = row["token_ids"], row["token_times_ns"]
        if len(ids) != len(times):
            raise FileError(f"{len(ids)} tokens have {len(times)} times")
        if times and times[0] < row["arrival_ns"]:
            raise FileError(f"token 1 comes at {times[0]} ns, before the request's arrival at {row['arrival_ns']} ns")
        if row.get("seat") is not None:
            self._known(f"decode {row['seat']}", "seat", "devices")
        row["stages"] = tuple((at, Stage(name)) for at, name in row.get("stages", ()))
        self.found.results.append(row)

    def _known(self, name: str, what: str, where: str) -> None:
        if name not in (known := self.found.header[where]):
            raise FileError(f"{what} {name!r} is not among the header's {where}: {short(list(known))}")


# ---- a config as a row -----------------------------------------------------------------------------------------------


def config_row(config: Config) -> Row:
    """Every field, in what JSON has."""
    policy = config.policy if isinstance(config.policy, str) else config.policy.name
    return {**vars(config), "policy": policy, "model": os.fspath(config.model), "link": _link_row(config.link)}


def _link_row(link: Any) -> Any:
    """A Link by its fields; JSON has no infinity, so the bandwidth of an unlimited link is null."""
    match link:
        case Link():
            return dataclasses.asdict(link) | {"bandwidth": link.bandwidth if link.bandwidth < math.inf else None}
        case tuple() | list():
            return [_link_row(part) for part in link]
        case _:
            return link


def config_from(row: Row) -> Config:
    try:
        return Config().replace(**{**row, **_policy_from(row), "link": _link_from(row.get("link"))})
    except (TypeError, ValueError, OverflowError) as error:
        raise FileError(f"config: {str(error)[:200]}") from None


def _policy_from(row: Row) -> Row:
    """A policy that was an object is known by its name alone."""
    name = row.get("policy", "fcfs")
    return {"policy": name if name in POLICIES or not isinstance(name, str) else KnownByName(name)}


class KnownByName(FirstCome):
    """The policy of a recorded run, which can't be asked again."""

    def order(self, request: Waiting) -> Never:
        raise PolicyError(f"policy {self.name!r} was an object of the recorded run; its file holds its name alone")


def _link_from(value: Any) -> Any:
    match value:
        case dict():
            return Link(**{**value, "bandwidth": math.inf if value.get("bandwidth") is None else value["bandwidth"]})
        case list():
            return tuple(_link_from(part) for part in value)
        case _:
            return value
