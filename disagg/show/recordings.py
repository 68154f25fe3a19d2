"""Recordings of one GPU and of two, written by `python -m benchmarks record-gpu`: runs; times of decode steps and of
prefill passes, each as one JSON object. They are read as data and checked; nothing in them is executed.
Notebook: notebooks/07_on_a_gpu.ipynb; those of two GPUs are in 02_disaggregation to 04_cpu_paging.
"""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import disagg
from disagg.plan.checks import is_number, short
from disagg.plan.errors import FileError
from disagg.trace.files import json_lines, located, whole
from disagg.trace.results import Run
from disagg.trace.schema import NAME, POSITIVE, WHOLE, Field, check

FOLDER = Path(disagg.__file__).parents[1] / "figures" / "data"
COMMAND = "python -m benchmarks record-gpu"

RUNGS = ("eager", "compiled", "graph", "joined", "fused")  # each adds one thing; a recording may lack the last one
#: Of a pass whose layers are handed off: launched, with a hook in Python, or a graph with graphs beside.
HAND_OFF_RUNGS = ("launched", "captured")
#: Arrangements of one GPU: the file's name, and words.
ARRANGEMENTS = {
    "colocated": "Colocated",
    "chunked": "Small chunks",
    "streams": "Streams",
    "sm_split": "SM split",
}

#: Recordings of two GPUs by part: the file's name, and words.
PAIR = {
    "crowd": {"split": "Split", "two_colocated": "Two colocated"},
    "routes": {"bulk": "Whole", "direct": "Direct", "staged": "Staged"},
    "paged": {"paged": "Paged"},
}

STEPS_FILE, HAND_OFF_FILE, VERSION = "gpu_steps.json.gz", "gpu_hand_off.json.gz", 1


def timeline_file(arrangement: str) -> str:
    return f"gpu_{arrangement}.jsonl.gz"


def staged_file(dial: float | str) -> str:
    """`dial` is a layer's hop in its compute; 0: pinned memory as it is."""
    return f"gpu_staged_{dial if isinstance(dial, str) else f'{dial:g}'}.jsonl.gz"


def split_file(sms: int | str) -> str:
    return f"gpu_split_{sms}.jsonl.gz"


def pair_file(name: str) -> str:
    return f"pair_{name}.jsonl.gz"


@dataclass(repr=False)
class Missing:
    """A part without files: false, with a sentence that names the command that makes them."""

    part: str
    names: list[str]
    pair: bool = False

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        names = f"{', '.join(self.names)} {'are' if len(self.names) > 1 else 'is'}"
        command = f"`{COMMAND}{' --two' if self.pair else ''} --only {self.part}`"
        machine = "two NVIDIA GPUs" if self.pair else "an NVIDIA GPU"
        return f"{names} not in figures/data. On a machine with {machine}, {command} measures and writes this part."


def steps(folder: Path | None = None) -> "StepTimes | Missing":
    """Times of decode steps on each rung."""
    path = (folder or FOLDER) / STEPS_FILE
    return StepTimes.load(path) if path.exists() else Missing("steps", [path.name])


def hand_off(folder: Path | None = None) -> "HandOffTimes | Missing":
    """Times of a small model's prefill passes without and with a staged hand-off, launched and captured."""
    path = (folder or FOLDER) / HAND_OFF_FILE
    return HandOffTimes.load(path) if path.exists() else Missing("hand_off", [path.name])


def timelines(folder: Path | None = None) -> dict[str, Run] | Missing:
    """The same requests in each arrangement of one GPU, by its words."""
    names = {words: timeline_file(name) for name, words in ARRANGEMENTS.items()}
    return _runs(folder or FOLDER, names, "timelines", pair=False)


def turns(folder: Path | None = None) -> Run | Missing:
    """The same requests, served by one worker that never decodes inside a pass: what the twin is fitted to."""
    found = _runs(folder or FOLDER, {"Turns": timeline_file("turns")}, "timelines", pair=False)
    return found if isinstance(found, Missing) else found["Turns"]


def pair(part: str, folder: Path | None = None) -> dict[str, Run] | Missing:
    """The runs of a part of PAIR on two GPUs, by their words."""
    names = {words: pair_file(name) for name, words in PAIR[part].items()}
    return _runs(folder or FOLDER, names, part, pair=True)


def _runs(folder: Path, names: dict[str, str], part: str, pair: bool) -> dict[str, Run] | Missing:
    absent = [name for name in names.values() if not (folder / name).exists()]
    return Missing(part, absent, pair) if absent else {words: Run.load(folder / name) for words, name in names.items()}


def staged(folder: Path | None = None) -> dict[float, Run] | Missing:
    """One prompt over the staged route, by dial: the run with the median H."""
    return _numbered(folder or FOLDER, staged_file("*"), "staged")


def splits(folder: Path | None = None) -> dict[float, Run] | Missing:
    """The same requests on one GPU split by SMs, by how many of them decode has."""
    return _numbered(folder or FOLDER, split_file("*"), "splits")


def _numbered(folder: Path, pattern: str, part: str) -> dict[float, Run] | Missing:
    start, end = pattern.split("*")
    numbers = {path.name.removeprefix(start).removesuffix(end): path for path in folder.glob(pattern)}
    found = {
        float(text): Run.load(path) for text, path in numbers.items() if re.fullmatch(r"\d{1,4}(\.\d{1,4})?", text)
    }
    return dict(sorted(found.items())) if found else Missing(part, [pattern])


def whence(part: "StepTimes | HandOffTimes | dict[object, Run] | Missing") -> str:
    """The machine of a part, or the command that measures it."""
    if isinstance(part, Missing):
        return repr(part)
    if isinstance(part, Times):
        return f"Recorded: {part.model} on {part.machine}."
    run = next(iter(part.values()))
    return f"Recorded: {run.config.model} on {run.machine}."


@dataclass(frozen=True)
class StepTime:
    """Medians of decode steps with a number of rows on one rung."""

    rung: str
    rows: int
    seconds: float  # of a step, on the device
    gap_s: float  # between two tokens, with the host's part
    nbytes: int  # the least read: each weight once, and K/V
    context: float  # mean tokens that a row attends to
    count: int  # steps measured


@dataclass(frozen=True)
class HandOffTime:
    """Medians of prefill passes over a number of tokens on one rung, from the command to token 1."""

    rung: str
    tokens: int
    without_s: float
    with_s: float  # with a staged hand-off
    hidden: float  # H of it, and E
    exposed_s: float
    hop_s: float  # a layer's copy over one link
    count: int  # passes measured of each kind

    @property
    def slower(self) -> float:
        """By which share of a pass without a hand-off one with it takes longer."""
        return self.with_s / self.without_s - 1


def _objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is dict for item in value)


_STEP = {"rung": NAME, "rows": WHOLE, "seconds": POSITIVE, "gap_s": POSITIVE, "nbytes": POSITIVE}
_STEP |= {"context": POSITIVE, "count": WHOLE}
_HAND_OFF = {"rung": NAME, "tokens": WHOLE, "without_s": POSITIVE, "with_s": POSITIVE, "hop_s": POSITIVE}
_HAND_OFF |= {"hidden": Field(lambda value: is_number(value, -1e6, 1), "a number, 1 or less"), "count": WHOLE}
_HAND_OFF |= {"exposed_s": Field(lambda value: is_number(value, 0, 1e30), "a number, 0 or more")}
_HEAD = {"recording": NAME, "version": WHOLE, "machine": NAME, "model": NAME}
_HEAD |= {"times": Field(_objects, "a list of objects")}


@dataclass(frozen=True)
class Times:
    """Times by rung and by `BY`, of one model on one machine: a file of one JSON object."""

    KIND: ClassVar[str]
    BY: ClassVar[str]
    LADDERS: ClassVar[tuple[tuple[str, ...], ...]]  # one of which it holds whole
    ROW: ClassVar[type]
    FIELDS: ClassVar[tuple[dict[str, Field], dict[str, Field]]]  # its own, and those of a row

    machine: str
    model: str

    def save(self, path: str | Path) -> None:
        """Writes the file whole or not at all; packed if its name ends in .gz. FileError."""
        row = {"recording": self.KIND, "version": VERSION, **asdict(self)}
        with whole(path, check=type(self).load) as file:
            file.write(json.dumps(row, allow_nan=False).encode() + b"\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        rows = [row for _, row in json_lines(Path(path))]
        try:
            return cls._of(rows)
        except FileError as error:
            raise located(Path(path), 1, error) from None

    @classmethod
    def _of(cls, rows: list[dict[str, Any]]) -> Self:
        if len(rows) != 1:
            raise FileError(f"one line holds the times of a recording; there are {len(rows)}")
        row, (fields, of_a_row) = rows[0], cls.FIELDS
        check(row, _HEAD | fields)
        if (row.pop("recording"), row.pop("version")) != (cls.KIND, VERSION):
            raise FileError(f"it is no recording of {cls.KIND} in version {VERSION}")
        for time in row["times"]:
            check(time, of_a_row)
        pairs = [(time["rung"], time[cls.BY]) for time in row["times"]]
        sizes = {size for _, size in pairs}
        if sorted(pairs) not in [sorted((rung, size) for rung in ladder for size in sizes) for ladder in cls.LADDERS]:
            rungs = ", ".join(cls.LADDERS[-1])
            raise FileError(f"times must hold each of {rungs} once for each number of {cls.BY}; got {short(pairs)}")
        return cls(**{**row, "times": tuple(cls.ROW(**time) for time in row["times"])})


@dataclass(frozen=True)
class StepTimes(Times):
    """All rungs of one model, and the ceilings of the same run: bytes/s and FLOP/s."""

    KIND, BY, LADDERS, ROW = "steps", "rows", (RUNGS, RUNGS[:-1]), StepTime
    FIELDS = dict.fromkeys(("copy", "matmul", "down", "up"), POSITIVE), _STEP

    copy: float  # device memory, bytes read and written
    matmul: float
    down: float  # device to pinned host memory
    up: float
    times: tuple[StepTime, ...]

    @property
    def batches(self) -> list[int]:
        return sorted({time.rows for time in self.times})

    @property
    def rungs(self) -> list[str]:
        """Those that it holds."""
        return list(dict.fromkeys(time.rung for time in self.times))

    def of(self, rung: str, rows: int) -> StepTime:
        return next(time for time in self.times if (time.rung, time.rows) == (rung, rows))

    def floor_s(self, rows: int) -> float:
        """Seconds of a step's bytes at the copy ceiling, by the last rung's contexts."""
        return [time for time in self.times if time.rows == rows][-1].nbytes / self.copy

    def over_floor(self, rung: str, rows: int) -> float:
        """A step on this rung, in floors of its own bytes."""
        time = self.of(rung, rows)
        return time.seconds / (time.nbytes / self.copy)


@dataclass(frozen=True)
class HandOffTimes(Times):
    """Prefill passes without and with a hand-off, on each of HAND_OFF_RUNGS."""

    KIND, BY, LADDERS, ROW, FIELDS = "hand_off", "tokens", (HAND_OFF_RUNGS,), HandOffTime, ({}, _HAND_OFF)

    times: tuple[HandOffTime, ...]

    def slowed_most(self, tokens: int) -> HandOffTime:
        """The rung that a hand-off slows most, at the recorded number of tokens nearest to this."""
        near = min((time.tokens for time in self.times), key=lambda count: abs(count - tokens))
        return max((time for time in self.times if time.tokens == near), key=lambda time: time.slower)

    def table(self) -> str:
        """A line a time."""
        return "\n".join(
            f"{time.tokens:5} tokens | {time.rung} | {1e3 * time.without_s:6.2f} ms, handed off "
            f"{1e3 * time.with_s:6.2f} ms: {time.slower:+.1%}" for time in self.times
        )  # fmt: skip
