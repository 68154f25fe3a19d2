"""Whether a GPU reaches another's memory without the host. The driver enables access once for each pair."""

import functools

import torch


@functools.cache
def reaches(source: torch.device, target: torch.device) -> bool:
    """Whether kernels on the source write to the target's memory without the host; True for one GPU."""
    if source == target:
        return True
    if not torch.cuda.can_device_access_peer(source, target):
        return False
    torch.empty(1, device=target).copy_(torch.empty(1, device=source))  # torch enables access with the first copy
    return True


def describe() -> str:
    """For `doctor`: which pairs of GPUs reach each other."""
    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    if len(gpus) < 2:
        return "nothing to reach: it takes two GPUs"
    pairs = [(a, b) for a in gpus for b in gpus if a != b]
    apart = [f"{a} and {b}" for a, b in pairs if a.index < b.index and not (reaches(a, b) and reaches(b, a))]
    if not apart:
        return f"between all {len(gpus)} GPUs; peer_access=False sends K/V through pinned host memory all the same"
    return f"not between {', '.join(apart)}: K/V go through pinned host memory there"
