"""Free memory of a device, and errors with advice if there is too little."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from disagg.plan.errors import EngineError

RESERVE_BYTES = 256 << 20  # left free by captures: passes, steps and copies allocate later
HOST_RESERVE_BYTES = 128 << 20  # left free on the host, which kills a process that uses too much
PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")

_SHORTAGE = re.compile("can't allocate memory|not enough memory|cannot allocate memory|tried to allocate", re.I)


class GroupFiles(NamedTuple):
    """Files of a control group: limits, usage, and fields of memory.stat that the kernel can reclaim."""

    limits: tuple[str, ...]
    usage: str
    cache: tuple[str, ...]


V1 = GroupFiles(("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
V2 = GroupFiles(("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file"))


def free_bytes(device: torch.device) -> int | None:
    """Bytes that an allocation may take now; None if unknown. On the host the least of the machine's free memory and
    what each control group of this process allows."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(_host_free(), default=None)


def is_shortage(error: BaseException) -> bool:
    """Whether an allocator, torch's or another, had too little memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or bool(_SHORTAGE.search(str(error)))


def check_room(what: str, device: torch.device, nbytes: int, advice: str) -> None:
    """EngineError if the bytes do not fit beside the reserve, before an allocation."""
    free, kept = free_bytes(device), HOST_RESERVE_BYTES if device.type == "cpu" else 0
    if nbytes and free is not None and nbytes > free - kept:
        stay = f" and {kept:,} must stay" if kept else ""
        raise EngineError(f"no room for {what} on {device}: {nbytes:,} bytes asked, {free:,} are free{stay}. {advice}")


def check_reserve(what: str, device: torch.device, advice: str, reserve: int) -> int | None:
    """EngineError if less than the reserve is free; else the free bytes, None if unknown."""
    free = free_bytes(device)
    if reserve and free is not None and free < reserve:
        raise EngineError(
            f"no room for {what} on {device}: {free:,} bytes are free, and {reserve:,} must stay. {advice}"
        )
    return free


@contextlib.contextmanager
def room_for(what: str, device: torch.device, advice: str, reserve: int = 0) -> Iterator[None]:
    """Around an allocation on a device: EngineError with the bytes asked for and free, if they are too few."""
    free = check_reserve(what, device, advice, reserve)
    try:
        yield
    except Exception as error:
        if isinstance(error, EngineError) or not is_shortage(error):
            raise
        asked = re.search(r"[Tt]ried to allocate [\d.]+ ?\w+", str(error))
        words = asked[0][0].lower() + asked[0][1:] if asked else "more was asked than there is"
        left = "how many are free is not known" if free is None else f"{free:,} bytes were free before"
        raise EngineError(f"no room for {what} on {device}: {words}, {left}. {advice}") from None


def _host_free() -> Iterator[int]:
    with contextlib.suppress(OSError, KeyError, ValueError):
        yield _table(PROC / "meminfo")["MemAvailable"] * 1024
    with contextlib.suppress(OSError, ValueError):
        for line in (PROC / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                yield from _groups_free(GROUPS, path, V2)
            elif "memory" in controllers.split(","):
                yield from _groups_free(GROUPS / "memory", path, V1)


def _groups_free(root: Path, path: str, files: GroupFiles) -> Iterator[int]:
    """Free bytes of a group and of its parents, as far as a container sees them."""
    place = root / path.lstrip("/")
    for group in (place, *place.parents):
        for limit in files.limits:
            with contextlib.suppress(OSError, ValueError):  # "max" stands for no limit
                held = int((group / files.usage).read_text()) - _cache(group / "memory.stat", files)
                yield max(0, int((group / limit).read_text()) - held)
        if group == root:
            return


def _cache(path: Path, files: GroupFiles) -> int:
    with contextlib.suppress(OSError, ValueError):
        return sum(count for name, count in _table(path).items() if name in files.cache)
    return 0


def _table(path: Path) -> dict[str, int]:
    """A file with a name and a number on each line."""
    rows = (line.replace(":", " ").split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1}
