"""Files from anywhere, read within bounds, and files that are written whole or not at all.

A file of JSON lines is read as a stream: no line, depth or total is taken in before it is known to be small enough,
so neither a bomb of gzip nor one of brackets costs more than these bounds.
"""

import gzip
import io
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from disagg.plan.checks import is_text
from disagg.plan.errors import FileError

MOST_BYTES = 64 * 2**20  # of a file, unpacked
MOST_LINES = 1_000_000
LINE_BYTES = 2**20  # an answer of some 50,000 tokens
DEPTH = 8
LEFT_S = 60.0  # a draft that is still written to has changed since then

_TOKEN = re.compile(rb'\\.|["\[\]{}]')


def inside(path: str | os.PathLike[str], folder: str | os.PathLike[str] | None) -> Path:
    """The path, looked up in `folder`; FileError where links and `..` lead out of it. No folder, no limit."""
    try:
        if folder is None:
            return Path(path)
        root = Path(folder).resolve()
        found = (root / path).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # loops of links, a null character
        raise FileError(f"{str(path)!r} is no usable path: {error}") from None
    if not found.is_relative_to(root):
        raise FileError(f"{str(path)!r} leads out of the folder {root.name!r}; name a file inside it")
    return found


@contextmanager
def whole(
    path: str | os.PathLike[str], overwrite: bool = True, check: Callable[[Path], object] = Path
) -> Iterator[IO[bytes]]:
    """A file to write to, packed where its name ends in .gz. It gets its name when all is written and `check`ed."""
    path = Path(path)
    with in_words(path):
        _check_place(path, overwrite)
    draft = path.with_name(f"{path.stem}.{os.getpid()}.draft{path.suffix}")
    try:
        draft.unlink(missing_ok=True)
        with open(draft, "xb") as plain:  # never through a link that lay there
            if path.suffix == ".gz":  # no name and no time inside: the same content gives the same bytes
                with gzip.GzipFile("", "wb", 6, plain, mtime=0) as packed:
                    yield packed  # type: ignore[misc]  # typeshed: a GzipFile reads and writes bytes as IO[bytes] does
            else:
                yield plain
        _remove_leftovers(path, draft)
        check(draft)
        draft.replace(path)
    except FileError as error:
        raise FileError(f"{path} can't be written: {str(error).replace(str(draft), 'the file')}") from None
    except OSError as error:
        raise FileError(f"{path} can't be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):  # the error on its way already gives the reason
            draft.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike[str]) -> None:
    """FileError now, where `whole` would raise one after the work; what lies there stays as it is."""
    with suppress(_Enough), whole(path):
        raise _Enough


def folder(path: str | os.PathLike[str]) -> Path:
    """The folder, made where there is none. FileError."""
    path = Path(path)
    with in_words(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def in_words(path: Path) -> Iterator[None]:
    """What the system refuses to do with a path becomes a FileError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileExistsError):
            raise FileError(f"{path} is a file; name a folder") from None
        raise FileError(f"{path} can't be written: {error.strerror or error}") from None


class _Enough(Exception):
    """Ends a check before anything gets its name."""


def _check_place(path: Path, overwrite: bool) -> None:
    if not is_text(str(path)) or "\0" in str(path):
        raise FileError(f"{str(path)!r} is no usable path")
    if not path.name or path.is_dir():
        raise FileError(f"{path} is a folder; name a file in it")
    if path.exists() and not path.is_file() and (path.is_symlink() or not path.is_fifo()):  # /dev/null, /dev/stdout
        raise FileError(f"{path} is a device, and can't be replaced by a file; take another name")
    if path.exists() and not overwrite:
        raise FileError(f"{path} exists already; take another name, or overwrite=True")


def _remove_leftovers(path: Path, draft: Path) -> None:
    """Drafts of the same file that killed processes left: they have not changed for a minute."""
    young = draft.stat().st_mtime - LEFT_S
    name = re.compile(rf"{re.escape(path.stem)}\.\d+\.draft{re.escape(path.suffix)}")
    for other in path.parent.iterdir():
        if name.fullmatch(other.name) and other != draft and other.lstat().st_mtime < young:
            other.unlink(missing_ok=True)


def json_lines(
    path: Path, longest: int = LINE_BYTES, each_line: Callable[[bytes], object] = len
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, object) of each line, unpacked where the name ends in .gz; FileError at the first wrong one. `each_line`
    is called with the bytes of each."""
    number = 0
    for number, line in enumerate(lines(path, longest), 1):
        each_line(line)
        try:
            found = _object(line)
        except FileError as error:
            raise located(path, number, error) from None
        yield number, found
    if not number:
        raise FileError(f"{path} is empty")


def located(path: Path, number: int, error: FileError) -> FileError:
    return FileError(f"{path}, line {number}: {error}")


def lines(path: Path, longest: int = LINE_BYTES) -> Iterator[bytes]:
    """Each line with its end, unpacked where the name ends in .gz; FileError where one is too long, or all too much."""
    number = total = 0
    try:
        if path.exists() and not path.is_file():
            raise FileError(f"{path} is not a file")
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            reader = io.BufferedReader(file, 2**16)
            while line := reader.readline(longest + 1):
                number, total = number + 1, total + len(line)
                if len(line) > longest:
                    raise FileError(f"{path}, line {number} is longer than {longest} bytes")
                if number > MOST_LINES or total > MOST_BYTES:
                    bounds = f"more than {MOST_LINES} lines or {MOST_BYTES} bytes"
                    raise FileError(f"{path}, line {number}: {bounds} are not taken in")
                yield line
    except ValueError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{str(path)!r} is no usable path: {error}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FileError(f"{path}, after line {number}: it is cut off, or not packed by gzip ({error})") from None
    except OSError as error:
        raise FileError(f"{path} can't be read: {error.strerror or error}") from None


def _object(line: bytes) -> dict[str, Any]:
    if not line.endswith(b"\n"):
        raise FileError("the file is cut off in this line")
    if not _shallow(line):
        raise FileError(f"brackets stand more than {DEPTH} deep")
    try:
        text = line.decode("utf-8")
        found, end = _JSON.raw_decode(text)
    except UnicodeDecodeError as error:
        raise FileError(f"it is not UTF-8 text (byte {error.start + 1})") from None
    except json.JSONDecodeError as error:
        raise FileError(f"it is not JSON ({error.msg}, column {error.colno})") from None
    except FileError:
        raise
    except ValueError:  # more digits than Python takes
        raise FileError("a number is too long") from None
    if not isinstance(found, dict) or text[end:].strip():
        raise FileError("it does not hold one JSON object")
    return found


def _shallow(line: bytes) -> bool:
    """Is nothing nested deeper than DEPTH? Few brackets can't be; else those outside of strings are counted."""
    if line.count(b"[") + line.count(b"{") <= DEPTH:
        return True
    depth, in_string = 0, False
    for token in _TOKEN.findall(line):
        if token == b'"':
            in_string = not in_string
        elif not in_string:
            depth += (token in b"[{") - (token in b"]}")
            if depth > DEPTH:
                return False
    return True


def _no_key_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise FileError(f"the field {next(k for k in keys if keys.count(k) > 1)[:40]!r} stands twice")
    return found


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise FileError(f"{text[:40]} is not a finite number")
    return float(text)


_JSON = json.JSONDecoder(object_pairs_hook=_no_key_twice, parse_float=_finite, parse_constant=_finite)
