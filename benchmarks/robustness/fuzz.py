"""Readers of files against files made wrong at random: only the reader's own error may come back, within ten seconds.

Any other input is kept, with the line that reads it again; the input in hand lies in the folder as well.
"""

import hashlib
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from benchmarks.common import Say
from benchmarks.day_process import peak_bytes
from benchmarks.robustness.fuzz_readers import READERS, FuzzedReader
from disagg.show.report import Row

FOLDER = Path("build/fuzz")
MOST_S = 10.0  # for one input
GIB = 2**30
LONGEST_MESSAGE = 1000


@dataclass
class Outcome:
    """What one reader did with its inputs."""

    inputs: int = 0
    refused: int = 0
    wrong: int = 0
    slowest_s: float = 0.0
    failures: dict[str, Path] = field(default_factory=dict)  # by what came back: the first input that did


def suite(say: Say, reader: str, minutes: float, seed: int) -> Iterator[Row]:
    """Two rows a reader: inputs that brought what they must not, and the memory that was needed."""
    for name in READERS if reader == "all" else (reader,):
        say(f"reader {name}, {minutes:g} min")
        found = fuzz(READERS[name], _for_minutes(minutes), seed, FOLDER, say)
        note = f"{found.refused} refused in words, slowest {found.slowest_s:.1f} s, peak {peak_bytes() / 2**20:.0f} MiB"
        yield Row(f"fuzz[{name}]", found.wrong, "", 0, found.inputs, note)
        yield Row(f"fuzz_peak[{name}]", peak_bytes() / GIB, "GiB", 1, found.inputs, "of the process, since its start")


def _for_minutes(minutes: float) -> Callable[[int], bool]:
    """True for so long from now on, however many inputs are done."""
    until = time.perf_counter() + 60 * minutes
    return lambda done: time.perf_counter() < until


def fuzz(reader: FuzzedReader, go_on: Callable[[int], bool], seed: int, folder: Path, say: Say = print) -> Outcome:
    """Reads one input after the other; the same seed makes the same ones."""
    found, place = Outcome(), folder / reader.name
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as good:
        seeds = reader.seeds(Path(good))
        contents = {path.name: path.read_bytes() for path in seeds}
        for path in seeds:
            reader.read(path)  # what is valid must be taken
        while go_on(found.inputs):
            draw = Random(f"{reader.name} {seed} {found.inputs}")
            name = draw.choice(list(contents))
            path = place / name
            path.write_bytes(reader.mutate(contents[name], draw))
            start = time.perf_counter()
            wrong = attempt(reader, path)
            seconds = time.perf_counter() - start
            found.inputs, found.slowest_s = found.inputs + 1, max(found.slowest_s, seconds)
            found.refused += wrong == ""
            if wrong or seconds > MOST_S:
                _keep(found, reader, path, wrong or f"took more than {MOST_S:g} s", say)
    return found


def attempt(reader: FuzzedReader, path: Path) -> str | None:
    """None where the file was taken, "" where it was refused in words, else what came back instead."""
    try:
        reader.read(path)
    except reader.errors as error:
        return _wrong_words(str(error), path.name if reader.names_file else "")
    except Exception as error:
        frame, line = list(traceback.walk_tb(error.__traceback__))[-1]
        where = f"{Path(frame.f_code.co_filename).name}:{line}"
        return f"{type(error).__name__} at {where}: {' '.join(str(error).split())[:120]!r}"
    return None


def _wrong_words(text: str, name: str) -> str:
    if name not in text:
        return "a message without the file's name"
    if "\n" in text or len(text) > LONGEST_MESSAGE:
        return "a message of more than a line"
    return "" if text.encode("utf-8", "replace") == text.encode("utf-8", "surrogatepass") else "a message of no text"


def _keep(found: Outcome, reader: FuzzedReader, path: Path, wrong: str, say: Say) -> None:
    found.wrong += 1
    kind = wrong.split(": ")[0]
    if kind in found.failures:
        return
    kept = path.parent / hashlib.sha256(path.read_bytes()).hexdigest()[:12] / path.name
    kept.parent.mkdir(exist_ok=True)
    found.failures[kind] = Path(shutil.copy(path, kept))
    say(f"{reader.name}: {wrong}; again: python -m benchmarks fuzz --reader {reader.name} --input {kept}")
