"""A recording that is longer than one file may be: its lines in files beside the named one, which lists them.

The named file then holds one line: how many lines each part has, and their SHA-256. A part is named by that too, so one
of a run that was written over is never taken for another's.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from disagg.plan.checks import is_whole, short
from disagg.plan.errors import FileError
from disagg.trace import files

MOST = 16  # parts of a recording


def write(path: Path, file: IO[bytes], rows: Iterable[bytes], parts: list[Path]) -> None:
    """All lines to the `file` that will be `path`, or to parts beside it where they are too many: each is added to
    `parts` before it is written."""
    listed: list[list[object]] = []
    for index, (content, last) in enumerate(_chunks(rows)):
        if last and not parts:
            file.write(content)
            return
        if index == MOST:
            raise FileError(
                f"it is longer than {MOST} parts of {files.MOST_BYTES:,} bytes; serve fewer requests at once, or "
                "with record=False"
            )
        sha256 = hashlib.sha256(content).hexdigest()
        parts.append(named(path, index, sha256))
        listed.append([content.count(b"\n"), sha256])
        with files.whole(parts[-1]) as part:
            part.write(content)
    file.write(json.dumps({"disagg": "parts", "version": 1, "parts": listed}).encode() + b"\n")


def _chunks(rows: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """The lines in parts that a file may hold, and whether each is the last one."""
    lines: list[bytes] = []
    size = 0
    for line in rows:
        if lines and (size + len(line) > files.MOST_BYTES or len(lines) == files.MOST_LINES):
            yield b"".join(lines), False
            lines, size = [], 0
        lines.append(line)
        size += len(line)
    yield b"".join(lines), True


def named(path: Path, index: int, sha256: str) -> Path:
    """Beside the recording, under its name with the part's number and hash."""
    stem, suffix = _split(path)
    return path.with_name(f"{stem}.part{index + 1}-{sha256[:16]}{suffix}")


def _split(path: Path) -> tuple[str, str]:
    suffix = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    return path.name.removesuffix(suffix), suffix


def rows_of(path: Path, beside: Path) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    """(file, line, object) of a recording, whether in one file or in parts beside `beside`. FileError."""
    for number, row in files.json_lines(path):
        if number == 1 and row.get("disagg") == "parts":
            yield from _rows_in_parts(path, row, beside)
            return  # what follows such a line is left unread
        yield path, number, row


def _rows_in_parts(path: Path, head: dict[str, Any], beside: Path) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    parts: Any = head.get("parts")
    if head.keys() != {"disagg", "version", "parts"} or head["version"] != 1 or not _are_parts(parts):
        raise FileError(f"{path}, line 1: it does not tell its parts as this package does: {short(head)}")
    for index, (count, sha256) in enumerate(parts):
        part, found, number = named(beside, index, sha256), hashlib.sha256(), 0
        if part.is_symlink() or not part.is_file():
            raise FileError(f"{path}: its part {part.name} is not beside it; parts are copied and renamed with it")
        for number, row in files.json_lines(part, each_line=found.update):
            yield part, number, row
        if (number, found.hexdigest()) != (count, sha256):
            raise FileError(f"{part} is not the part that {beside.name} tells of; it has been changed")


def _are_parts(parts: Any) -> bool:
    """Lists of how many lines each part has, and of their SHA-256."""
    if type(parts) is not list or not 1 <= len(parts) <= MOST:
        return False
    pairs = [part for part in parts if type(part) is list and len(part) == 2 and type(part[1]) is str]
    return len(pairs) == len(parts) and all(
        is_whole(count) and re.fullmatch("[0-9a-f]{64}", sha256, re.ASCII) for count, sha256 in pairs
    )


def named_in(path: Path) -> list[Path]:
    """The parts that a recording lists; none where it lists none, or is no recording."""
    try:
        _, row = next(files.json_lines(path))
    except FileError:
        return []
    parts: Any = row.get("parts")
    return [named(path, i, sha256) for i, (_, sha256) in enumerate(parts)] if _are_parts(parts) else []


def remove_leftovers(path: Path, kept: list[Path], before: list[Path]) -> None:
    """Parts that the recording no longer lists: those of `before`, and what a killed process left."""
    stem, suffix = _split(path)
    pattern = re.compile(rf"{re.escape(stem)}\.part\d+-[0-9a-f]{{16}}{re.escape(suffix)}")
    young = path.stat().st_mtime - files.LEFT_S
    for other in path.parent.iterdir():
        stale = pattern.fullmatch(other.name) and other not in kept
        if stale and (other in before or other.lstat().st_mtime < young):
            other.unlink(missing_ok=True)
