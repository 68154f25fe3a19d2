"""Recordings: a run or a timeline as a file of JSON lines, which never runs anything and is checked line by line.

A header, then a line for each span, mark, move, choice and result, then a closing line that counts them, so that a
file that was cut off is noticed. What each line may hold stands in `schema.py`, and how much is read in `files.py`.
"""

import dataclasses
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

from disagg.plan.batching import Padding
from disagg.plan.checks import short
from disagg.plan.config import Config
from disagg.plan.errors import FileError
from disagg.plan.link import Link
from disagg.plan.preemption import Arm, Choice
from disagg.plan.request import Stage
from disagg.plan.spans import BlockMove, Mark, Span
from disagg.trace import parts
from disagg.trace.files import inside, located, whole
from disagg.trace.results import Result, Run
from disagg.trace.schema import COUNTS, HEADER, SHAPES, check
from disagg.trace.timeline import Timeline

FORMAT, VERSION = "disagg", 1
OF_A_RUN = ("config", "machine", "counts", "padding", "peak_blocks", "interrupted")  # of the header


def save(path: str | os.PathLike, timeline: Timeline, run: Run | None = None, overwrite: bool = False) -> None:
    """Writes a recording, whole or not at all: it gets its name once it has been read back without a fault.

    What is longer than one file may be goes into parts beside it (parts.py), which `load` reads as one."""
    path = Path(path)
    before, kept = parts.told(path) if overwrite else [], []
    try:
        with whole(path, overwrite, check=lambda draft: _read(draft, path)) as file:
            kept = parts.write(path, file, map(_line, _rows(timeline, run)), before)
    except BaseException:
        parts.remove(kept, but=before)
        raise
    parts.remove_leftovers(path, kept, before)


def _line(row: dict) -> bytes:
    try:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=float)
        return line.encode("utf-8") + b"\n"
    except (TypeError, ValueError) as error:
        raise FileError(f"a {next(iter(row))} is not plain data: {error}") from None


def load_run(path: str | os.PathLike, within: str | os.PathLike | None = None) -> Run:
    """The run of a recording, without `log` and logits."""
    path = inside(path, within)
    run = _read(path).run()
    if run is None:
        raise FileError(f"{path} holds a timeline without its run; Timeline.load reads it")
    return run


def load_timeline(path: str | os.PathLike, within: str | os.PathLike | None = None) -> Timeline:
    """The timeline of a recording, whether it holds a run or only that."""
    return _read(inside(path, within)).timeline


def _read(path: Path, beside: Path | None = None) -> "Reader":
    """`beside` is the name under which its parts stand, where it does not have that name yet."""
    reader, file, number = Reader(), path, 0
    for file, number, row in parts.rows_of(path, beside or path):
        try:
            reader.take(row)
        except FileError as error:
            raise located(file, number, error) from None
    if not reader.closed:
        raise FileError(f"{file}, after line {number}: it is cut off, the closing line is missing")
    return reader


class Reader:
    """Takes a recording's lines one after the other, and holds each against what the lines before it said."""

    def __init__(self) -> None:
        self.header: dict | None = None
        self.timeline = Timeline()
        self.choices: list[Choice] = []
        self.results: list[Result] = []
        self.closed = False
        self._counts = dict.fromkeys(SHAPES, 0)
        self._take = {
            "span": self._span, "mark": self._mark, "move": self._move, "choice": self._choice, "result": self._result,
        }  # fmt: skip

    def take(self, row: dict):
        """One line; FileError where it is wrong."""
        kind = next(iter(row), None)
        if self.closed:
            raise FileError("the closing line is not the last one")
        if self.header is None:
            return self._open(row)
        if kind == "end":
            return self._close(row)
        shape = SHAPES.get(kind)
        if shape is None:
            raise FileError(f"a line must start with {', '.join(SHAPES)} or end; got {short(kind)}")
        row[shape.stands_for] = row.pop(kind)
        check(row, shape.fields, shape.defaults)
        self._counts[kind] += 1
        self._take[kind](row)

    def run(self) -> Run | None:
        """What the lines said; None where they hold a timeline alone."""
        if self.header["holds"] == "timeline":
            return None
        header, padding = self.header, Padding(*self.header["padding"])
        config = config_from(header["config"])
        return Run(
            config, self.results, self.timeline, header["counts"], padding, header["peak_blocks"], self.choices,
            interrupted=header["interrupted"], machine=header["machine"],
        )  # fmt: skip

    # ---- line by line ------------------------------------------------------------------------------------------------

    def _open(self, row: dict) -> None:
        if row.pop(FORMAT, None) != "recording":
            raise FileError("it does not begin as a recording of disagg")
        if row.get("version") != VERSION:
            raise FileError(
                f"version {short(row.get('version'))} is unknown here; this package reads version {VERSION}"
            )
        check(row, HEADER, OF_A_RUN if row.get("holds") == "timeline" else ())
        timeline = self.timeline
        timeline.start_ns, timeline.devices, timeline.sizes = row["start_ns"], row["devices"], row["sizes"]
        if row["holds"] == "run":
            config_from(row["config"])
        self.header = row

    def _close(self, row: dict) -> None:
        check(row, {"end": COUNTS})
        if row["end"] != self._counts:
            raise FileError(f"the closing line counts {short(row['end'])}, but there are {self._counts}")
        self.closed = True

    def _span(self, row: dict) -> None:
        span = Span(**{name: tuple(value) if type(value) is list else value for name, value in row.items()})
        if span.end_ns < span.start_ns:
            raise FileError(f"a span ends before it starts: start_ns {span.start_ns}, end_ns {span.end_ns}")
        self._known(span.place, self.timeline.devices, "place", "devices")
        if not span.requests:
            raise FileError("a span has no requests; it is of one at least")
        marks = span.hand_offs_ns
        if marks and not span.start_ns <= marks[0] <= marks[-1] <= span.end_ns:
            raise FileError("a layer is handed off outside of its pass")
        if span.firsts and not set(span.firsts) <= set(span.requests):
            raise FileError("firsts names a request that is not among the span's requests")
        self.timeline.spans.append(span)

    def _mark(self, row: dict) -> None:
        if isinstance(row["value"], str) != row["name"].startswith("gate "):
            raise FileError(f"{short(row['name'])} is {short(row['value'])}: a gate has a name, all else a number")
        self.timeline.marks.append(Mark(**row))

    def _move(self, row: dict) -> None:
        pool, blocks, state, owner = row["pool"], row["blocks"], row["state"], row["owner"]
        self._known(pool, self.timeline.sizes, "pool", "sizes")
        if max(blocks, default=0) >= self.timeline.sizes[pool]:
            raise FileError(f"{pool} has {self.timeline.sizes[pool]} blocks; got block {max(blocks)}")
        if (owner is None) != (state == "free"):
            raise FileError(f"free blocks have no owner, and others have one; got {state} and owner {owner}")
        self.timeline.moves.append(BlockMove(row["at_ns"], pool, state, owner, tuple(blocks)))

    def _choice(self, row: dict) -> None:
        self.choices.append(Choice(**{**row, "arm": Arm(row["arm"])}))

    def _result(self, row: dict) -> None:
        ids, times = row["token_ids"], row["token_times_ns"]
        if len(ids) != len(times):
            raise FileError(f"{len(ids)} tokens have {len(times)} times")
        if times and times[0] < row["arrival_ns"]:
            raise FileError(f"token 1 comes at {times[0]} ns, before the request's arrival at {row['arrival_ns']} ns")
        if row.get("seat") is not None:
            self._known(f"decode {row['seat']}", self.timeline.devices, "seat", "devices")
        row["stages"] = tuple((at, Stage(name)) for at, name in row.get("stages", ()))
        self.results.append(Result(timeline=self.timeline if row.pop("recorded") else None, **row))

    def _known(self, name: str, known: dict, what: str, where: str) -> None:
        if name not in known:
            raise FileError(f"{what} {name!r} is not among the header's {where}: {short(list(known))}")


# ---- the lines of a run ----------------------------------------------------------------------------------------------


def _rows(timeline: Timeline, run: Run | None) -> Iterator[dict]:
    kept = {"span": list(timeline.spans), "mark": list(timeline.marks), "move": list(timeline.moves)}
    kept |= {"choice": run.choices if run else [], "result": run.results if run else []}
    yield _header(timeline, run)
    for kind, records in kept.items():
        for record in records:
            row = SHAPES[kind].row(kind, record)
            yield {**row, "recorded": record.timeline is not None} if kind == "result" else row
    yield {"end": {kind: len(records) for kind, records in kept.items()}}


def _header(timeline: Timeline, run: Run | None) -> dict:
    row = {FORMAT: "recording", "version": VERSION, "holds": "run" if run else "timeline"}
    row |= {"start_ns": timeline.start_ns, "devices": timeline.devices, "sizes": timeline.sizes}
    if run is None:
        return row
    padding = [run.padding.used_slots, run.padding.padded_slots]
    values = (config_row(run.config), run.machine, run.counts, padding, run.peak_blocks, run.interrupted)
    return row | dict(zip(OF_A_RUN, values, strict=True))


def config_row(config: Config) -> dict:
    """Every field, in what JSON has."""
    row = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {**row, "model": os.fspath(config.model), "link": _link_row(config.link)}


def _link_row(link):
    """A Link by its fields; JSON has no infinity, so the plain wire's bandwidth is null."""
    match link:
        case Link():
            return dataclasses.asdict(link) | {"bandwidth": link.bandwidth if link.bandwidth < math.inf else None}
        case tuple() | list():
            return [_link_row(part) for part in link]
        case _:
            return link


def config_from(row: dict) -> Config:
    """The config of such a row; FileError."""
    try:
        return Config().replace(**{**row, "link": _link_from(row.get("link"))})
    except (TypeError, ValueError, OverflowError) as error:
        raise FileError(f"config: {str(error)[:200]}") from None


def _link_from(value):
    match value:
        case dict():
            return Link(**{**value, "bandwidth": math.inf if value.get("bandwidth") is None else value["bandwidth"]})
        case list():
            return tuple(_link_from(part) for part in value)
        case _:
            return value
