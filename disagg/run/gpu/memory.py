"""Memory of a device: how much is free, and a sentence in place of a traceback where there is too little."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from disagg.plan.errors import EngineError

RESERVE_BYTES = 256 << 20  # left free by captures: passes, steps and copies allocate later
HOST_RESERVE_BYTES = 128 << 20  # left free on the host, which refuses nothing and kills a process that takes too much
PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")

_SHORTAGE = re.compile("can't allocate memory|not enough memory|cannot allocate memory|tried to allocate", re.I)


class GroupFiles(NamedTuple):
    """Files of a control group: its limits, its usage, and the fields of memory.stat that the kernel can reclaim."""

    limits: tuple[str, ...]
    usage: str
    cache: tuple[str, ...]


V1 = GroupFiles(("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
V2 = GroupFiles(("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file"))


def free_bytes(device: torch.device) -> int | None:
    """Bytes that an allocation may take now; None where that is not known. On the host the least of what the machine
    has and what each control group of this process allows."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(_host_free(), default=None)


def is_shortage(error: BaseException) -> bool:
    """Is this an allocator's error, torch's or another's, about too little memory?"""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or bool(_SHORTAGE.search(str(error)))


def check_room(what: str, device: torch.device, nbytes: int, advice: str) -> None:
    """EngineError where so many bytes do not fit beside what must stay free, before anything is allocated."""
    free, kept = free_bytes(device), HOST_RESERVE_BYTES if device.type == "cpu" else 0
    if nbytes and free is not None and nbytes > free - kept:
        stay = f" and {kept:,} must stay" if kept else ""
        raise EngineError(f"no room for {what} on {device}: {nbytes:,} bytes asked, {free:,} are free{stay}. {advice}")


@contextlib.contextmanager
def room_for(what: str, device: torch.device, advice: str, reserve: int = 0) -> Iterator[None]:
    """Around an allocation on a device: EngineError with what was asked and what is free, where it is too little."""
    free, refused = free_bytes(device), f"no room for {what} on {device}"
    if reserve and free is not None and free < reserve:
        raise EngineError(f"{refused}: {free:,} bytes are free, and {reserve:,} must stay. {advice}")
    try:
        yield
    except Exception as error:
        if isinstance(error, EngineError) or not is_shortage(error):
            raise
        asked = re.search(r"[Tt]ried to allocate [\d.]+ ?\w+", str(error))
        words = asked[0][0].lower() + asked[0][1:] if asked else "more was asked than there is"
        left = "how many are free is not known" if free is None else f"{free:,} bytes were free before"
        raise EngineError(f"{refused}: {words}, {left}. {advice}") from None


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
    """Of a group and of those around it up to the root, as far as a container sees them."""
    place = root / path.lstrip("/")
    for group in (place, *place.parents):
        for limit in files.limits:
            with contextlib.suppress(OSError, ValueError):  # "max" is no number
                held = int((group / files.usage).read_text()) - _cache(group / "memory.stat", files)
                yield max(0, int((group / limit).read_text()) - held)
        if group == root:
            return


def _cache(path: Path, files: GroupFiles) -> int:
    with contextlib.suppress(OSError, ValueError):
        return sum(count for name, count in _table(path).items() if name in files.cache)
    return 0


def _table(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    rows = (line.replace(":", " ").split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1}
