"""What stands behind a claim's numbers: their values, and all that is needed to get them again."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from disagg.plan.request import Request
from disagg.trace.results import Run


@dataclass(frozen=True)
class Finding:
    """Values by name, and where they come from."""

    values: Mapping[str, float]
    command: str
    workload: str  # in words
    workload_sha256: str
    hardware: str
    baseline: str = ""
    interval: Mapping[str, tuple[float, float]] | None = None  # lowest and highest, for values that vary
    why_no_interval: str = ""


def digest(data: object) -> str:
    """SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def digest_of_requests(requests: Iterable[Request]) -> str:
    """Of prompts, answers' lengths and arrivals."""
    return digest([[list(r.prompt), r.max_new_tokens, r.arrival_s] for r in requests])


def digest_of_runs(runs: Iterable[Run]) -> str:
    """Of what recordings were asked: lengths and arrivals."""
    return digest([[[r.prompt_tokens, len(r.token_ids), r.arrival_ns] for r in run.results] for run in runs])
