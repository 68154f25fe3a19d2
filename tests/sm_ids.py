"""Which SMs a stream's kernels run on: each program of this kernel notes its own, and stays until all have one.

Imported only where there is a GPU: it needs triton.
"""

import torch
import triton
import triton.language as tl

STAY_NS = 200_000


@triton.jit
def note(ids, stay_ns):
    until = tl.extra.cuda.globaltimer() + stay_ns
    tl.store(ids + tl.program_id(0), tl.extra.cuda.smid())
    while tl.extra.cuda.globaltimer() < until:
        pass


def sm_ids(device: torch.device, programs: int = 4096) -> set[int]:
    """Of the current stream."""
    ids = torch.full((programs,), -1, dtype=torch.int32, device=device)
    note[(programs,)](ids, STAY_NS, num_warps=1)
    return set(ids.tolist())
