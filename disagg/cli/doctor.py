"""What was found on this machine, and what that means for the workbench."""

import sys

import torch

from disagg.plan.link import CPU_DIAL_LIMIT
from disagg.run.attention.choice import describe
from disagg.run.gpu import peer_access, sm_split, stream_memory
from disagg.run.gpu.memory import free_bytes
from disagg.run.model.weights import smollm2_ready
from disagg.show.report import Row, machine, versions


def findings() -> list[tuple[str, str]]:
    """(what, finding) in plain words."""
    found, known = machine(), versions()
    gpus = ", ".join(found["gpus"]) or "none: prefill and decode are two workers on the CPU, a core each"
    free = free_bytes(torch.device("cpu"))
    model = "ready" if smollm2_ready() else "not converted yet: run `python -m disagg setup`"
    cores = found["cores"] or 1
    return [
        ("Python", f"{known['python']} ({sys.executable})"),
        ("PyTorch", f"{known['torch']}, transformers {known['transformers']}"),
        ("CPU", f"{found['cpu']}, {cores} cores{'' if cores > 1 else ': two workers will share one core'}"),
        ("memory", "unknown" if free is None else f"{free / 2**30:.1f} GB free"),
        ("GPUs", gpus),
        ("attention", describe("cuda" if torch.cuda.is_available() else "cpu")),
        ("SM split", sm_split.describe()),
        ("peer access", peer_access.describe()),
        ("hand-off", stream_memory.describe()),
        ("link dial", f"holds up to {CPU_DIAL_LIMIT / 1e9:g} GB/s between two CPU workers"),
        ("model smollm2", model),
    ]


def rows() -> list[Row]:
    found = machine()
    return [
        Row("cores", found["cores"] or 1),
        Row("gpus", len(found["gpus"])),
        Row("memory_free_gb", (free_bytes(torch.device("cpu")) or 0) / 2**30, "GB"),
        Row("model_ready", smollm2_ready()),
    ]
