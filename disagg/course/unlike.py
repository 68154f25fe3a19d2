"""Chapter 05's last comparison: reports for an H100 and an A100, and everything else that one could do with the two."""

from collections.abc import Sequence

from disagg.plan.config import Config
from disagg.plan.request import Request
from disagg.trace.results import Result
from disagg.twin.simulate import simulate
from disagg.twin.workloads import Lengths, poisson, requests_of

PAIR = "H100+A100"
CHUNKS = {  # of a prefill pass: what each way is tuned over
    "streamed": (1024, 2048),
    "H100 alone": (512, 768, 1024),
    "two_colocated": (256, 512),
    "conditional": (512, 768),
    "5 to 1 by hand": (512, 768),
}
BY_HAND = 6  # every sixth request goes to the A100, the others to the H100


def reports(seed: int, per_s: float = 4, count: int = 70) -> list[Request]:
    """Prompts of about 8,192 tokens that arrive by chance, with answers of about 100."""
    return requests_of(poisson(count, per_s, Lengths(8192, 0.3), Lengths(100, 0.3), seed=seed), vocab=32_000)


def served(way: str, chunk: int, requests: Sequence[Request], hardware: str = PAIR) -> list[Result]:
    """By a preset on two devices, by the H100 alone, or by two servers that know nothing of each other."""
    if way == "H100 alone":
        return _alone("1xH100", chunk, requests)
    if way == "5 to 1 by hand":
        most = [request for number, request in enumerate(requests) if number % BY_HAND]
        return [*_alone("1xH100", chunk, most), *_alone("1xA100", min(chunk, 256), requests[::BY_HAND])]
    return _run(way, chunk, requests, hardware, "cuda:1")


def kept(results: Sequence[Result], ttft_s: float, tpot_s: float) -> float:
    """The share of requests with token 1 in time and no more than so long a token after it, token 2 included."""
    good = [r.ttft_s <= ttft_s and (r.tpot_s or 0) <= tpot_s for r in results if r.ttft_s is not None]
    return sum(good) / len(results)


def _alone(device: str, chunk: int, requests: Sequence[Request]) -> list[Result]:
    return _run("colocated", chunk, requests, device, "cuda:0")


def _run(preset: str, chunk: int, requests: Sequence[Request], hardware: str, decode: str) -> list[Result]:
    where = {"prefill_device": "cuda:0", "decode_device": decode, "model": "random-llama3-8b", "dtype": "bfloat16"}
    config = Config.preset(preset, chunk_tokens=chunk, itl_target_s=None, **where)
    return list(simulate(config, requests, hardware=hardware, record=False).results)
