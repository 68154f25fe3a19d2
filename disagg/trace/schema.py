"""What a line of a recording may hold: its fields by name, and what each of them has to be.

The first field of a line names its kind, and stands for one field of the record: {"span": "copy", "place": "up 0", …}.
Fields that are at their record's default are left out.
"""

import re
from collections.abc import Callable, Collection, Container
from enum import Enum
from typing import Any, NamedTuple

from disagg.plan.blocks import STATES
from disagg.plan.checks import is_number, is_text, short
from disagg.plan.errors import FileError
from disagg.plan.policy import WAYS
from disagg.plan.preemption import Arm
from disagg.plan.request import LEGAL_MOVES, Finish, Stage
from disagg.trace.spans import Span

Row = dict[str, Any]  # of JSON: a line by its fields
KINDS = ("prefill", "decode", "copy", "spill", "fetch")
MOST = 2**62  # ns, bytes, tokens
MOST_BLOCKS = 10_000_000  # of all memories: a picture makes room for each
MOST_PLACES = 256  # rows of a picture
LONGEST_NAME = 1000


class Field(NamedTuple):
    """A test, and the words for what passes it."""

    holds: Callable[[Any], bool]
    wanted: str


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MOST


def _name(value: Any) -> bool:
    return type(value) is str and len(value) <= LONGEST_NAME and value.isprintable()


def _wholes(value: Any) -> bool:
    return type(value) is list and all(map(_whole, value))


def _rising(value: Any) -> bool:
    return _wholes(value) and bool(value == sorted(value))


def _life(value: Any) -> bool:
    """[ns, stage] pairs, each stage a legal move from the one before."""
    if type(value) is not list or not all(type(pair) is list and len(pair) == 2 for pair in value):
        return False
    times, names = [at for at, _ in value], [name for _, name in value]
    if not _rising(times) or not all(type(name) is str and name in _STAGES for name in names):
        return False
    return all(Stage(b) in LEGAL_MOVES[Stage(a)] for a, b in zip(names, names[1:], strict=False))


def _options(value: Any) -> bool:
    """[way, worker, [[term, ns], …], worker that decodes or null] lists."""
    if type(value) is not list or not all(type(each) is list and len(each) == 4 for each in value):
        return False
    terms = [term for *_, terms, _ in value for term in (terms if type(terms) is list else [()])]
    pairs = all(type(term) is list and len(term) == 2 and _name(term[0]) and _whole(term[1]) for term in terms)
    return pairs and all(w in WAYS and _whole(at) and (onto is None or _whole(onto)) for w, at, _, onto in value)


def _counts(value: Any) -> bool:
    return type(value) is dict and all(map(_name, value)) and all(map(_whole, value.values()))


def _sizes(value: Any) -> bool:
    return _counts(value) and all(map(MEMORY.holds, value)) and sum(value.values()) <= MOST_BLOCKS


def _devices(value: Any) -> bool:
    if type(value) is not dict or len(value) > MOST_PLACES:
        return False
    return all(map(PLACE.holds, value)) and all(map(_name, value.values()))


def _like(pattern: str, wanted: str) -> Field:
    whole = re.compile(pattern, re.ASCII)
    return Field(lambda value: type(value) is str and bool(whole.fullmatch(value)), wanted)


def _one_of(words: Collection[str]) -> Field:
    return Field(lambda value: type(value) is str and value in words, f"one of {', '.join(filter(None, words))}")


def _or_null(field: Field) -> Field:
    return Field(lambda value: value is None or field.holds(value), f"{field.wanted}, or null")


_STAGES = [stage.value for stage in Stage]
_ROW = r"(prefill|decode|direct|down|up|spill|park) \d{1,4}"
POSITIVE = Field(lambda value: is_number(value, 1e-30, 1e30), "a number above 0, from 1e-30 to 1e30")
WHOLE = Field(_whole, "a whole number, 0 or more")
WHOLES = Field(_wholes, "a list of whole numbers, 0 or more")
TIMES = Field(_rising, "a list of times in ns, in order")
NAME = Field(_name, "a short text on one line")
COUNTER = _like(
    r"(gate )?((prefill|decode) \d{1,4} queue|decode \d{1,4} landed|wanting)"
    r"|free (host|(prefill|decode) \d{1,4})|batch \d{1,4}|ring",
    "the name of a queue, a batch, a gate, the ring or free blocks",
)
TEXT = Field(is_text, "text")
ROW = _like(_ROW, "a worker or a lane")
PLACE = _like(f"{_ROW}|host", "a worker, a lane or host memory")
MEMORY = _like(f"{_ROW}|host|ring", "a memory or the ring")
COUNTS = Field(_counts, "whole numbers by name")
YES_NO = Field(lambda value: type(value) is bool, "true or false")


class Shape(NamedTuple):
    """A kind of line. `stands_for` is the field that the line's first one gives."""

    stands_for: str
    fields: dict[str, Field]
    defaults: Row

    def row(self, kind: str, record: object) -> Row:
        row = {kind: plain(getattr(record, self.stands_for))}
        for name in self.fields:
            value = getattr(record, name)
            if name != self.stands_for and (name not in self.defaults or value != self.defaults[name]):
                row[name] = plain(value)
        return row


def check(row: Row, fields: dict[str, Field], may_lack: Container[str] = ()) -> None:
    """FileError where a field is unknown, wrong or missing."""
    for name, value in row.items():
        field = fields.get(name)
        if field is None:
            raise FileError(f"field {name[:40]!r} is unknown; known: {', '.join(fields)}")
        holds, wanted = field
        if not holds(value):
            raise FileError(f"{name} must be {wanted}; got {short(value)}")
    if len(row) < len(fields):
        for name in fields:
            if name not in row and name not in may_lack:
                raise FileError(f"field {name!r} is missing")


def plain(value: object) -> object:
    """As JSON holds it: tuples as lists, an enum's word as text."""
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value


SHAPES = {
    "span": Shape(
        "kind",
        dict.fromkeys(Span._fields, WHOLE)
        | {"kind": _one_of(KINDS), "place": ROW, "hand_offs_ns": TIMES}
        | dict.fromkeys(("requests", "firsts", "groups", "waits_ns"), WHOLES),
        Span._field_defaults,
    ),
    "mark": Shape(
        "name",
        {
            "name": COUNTER,
            "at_ns": WHOLE,
            "value": Field(lambda v: _whole(v) or _name(v), f"{WHOLE.wanted}, or a name"),
        },
        {},
    ),
    "move": Shape(
        "pool", {"pool": NAME, "at_ns": WHOLE, "state": _one_of(STATES), "owner": _or_null(WHOLE), "blocks": WHOLES}, {}
    ),
    "choice": Shape(
        "request",
        {
            "request": WHOLE,
            "tokens": WHOLE,
            "spill_ns": _or_null(WHOLE),
            "recompute_ns": _or_null(WHOLE),
            "arm": _one_of([arm.value for arm in Arm]),
        },
        {},
    ),
    "placement": Shape(
        "request",
        {
            "request": WHOLE,
            "way": _one_of(("", *WAYS)),
            "options": Field(_options, "ways with a worker, and terms in ns by name"),
            "at_ns": WHOLE,
        },
        {},
    ),
    "result": Shape(
        "request",
        {
            "request": Field(lambda v: _whole(v) or (type(v) is int and v == -1), "a number, or -1: it never started"),
            "prompt_tokens": WHOLE,
            "arrival_ns": WHOLE,
            "token_ids": WHOLES,
            "token_times_ns": TIMES,
            "text": TEXT,
            "prompt": TEXT,
            "finish_reason": _one_of(["", *(finish.value for finish in Finish)]),
            "error": _or_null(TEXT),
            "stages": Field(_life, "pairs of a time in ns and a stage, in legal order"),
            "ended_ns": WHOLE,
            "seat": _or_null(WHOLE),
            "recorded": YES_NO,
        },
        {"text": "", "prompt": "", "finish_reason": "", "error": None, "stages": (), "ended_ns": 0, "seat": None},
    ),
}

#: The first line; a timeline alone ends with `sizes`.
HEADER = {
    "holds": _one_of(("run", "timeline")),
    "version": WHOLE,
    "start_ns": WHOLE,
    "devices": Field(_devices, f"devices by worker, lane or memory, {MOST_PLACES} or fewer"),
    "sizes": Field(_sizes, f"blocks or slots by memory, {MOST_BLOCKS} or fewer in all"),
    "config": Field(lambda value: type(value) is dict, "fields of a Config"),
    "machine": NAME,
    "counts": COUNTS,
    "padding": Field(lambda value: _wholes(value) and len(value) == 2, "slots used, and all that were read"),
    "peak_blocks": COUNTS,
    "interrupted": YES_NO,
}
