"""Memory of a device: how much is free, and a sentence in place of a traceback where there is too little."""

import contextlib
import re

import torch

from disagg.plan.errors import EngineError

RESERVE_BYTES = 256 << 20  # left free by captures: passes, steps and copies allocate later


def free_bytes(device: torch.device) -> int | None:
    """Bytes that an allocation on the device may take now; None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as lines:
            fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


@contextlib.contextmanager
def room_for(what: str, device: torch.device, advice: str, reserve: int = 0):
    """Around what allocates on a device: EngineError with what was asked and what is free, where it is too little."""
    free = free_bytes(device)
    if reserve and free is not None and free < reserve:
        raise EngineError(
            f"no room for {what} on {device}: {free:,} bytes are free, and {reserve:,} must stay. {advice}"
        )
    try:
        yield
    except torch.OutOfMemoryError as error:
        asked = re.search(r"[Tt]ried to allocate [\d.]+ ?\w+", str(error))
        words = asked[0][0].lower() + asked[0][1:] if asked else "more was asked than there is"
        left = "how many are free is not known" if free is None else f"{free:,} bytes were free before"
        raise EngineError(f"no room for {what} on {device}: {words}, {left}. {advice}") from None
