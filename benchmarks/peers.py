"""Hugging Face's own ways of generating, on the same prompts: greedy, the end of sequence ignored, plain weights.

On a CPU each sets torch's threads for the process.
"""

import dataclasses
import statistics
import time
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig
from transformers.generation import ContinuousBatchingConfig

from disagg.plan.errors import EngineError
from disagg.plan.request import Request

Module = Any  # a Hugging Face model that generates; transformers builds its classes by name


class FirstToken:
    """A streamer that keeps the instant of the first new token; the prompt is put first."""

    def __init__(self) -> None:
        self.puts, self.at_s = 0, 0.0

    def put(self, tokens: torch.Tensor) -> None:
        self.puts += 1
        if self.puts == 2:
            self.at_s = time.perf_counter()

    def end(self) -> None:
        """Nothing is kept open."""


@torch.inference_mode()
def generate(module: Module, request: Request) -> float:
    """One answer by `generate`; when its first token came, in seconds of `perf_counter`. EngineError if it is short."""
    ids, first = torch.tensor([request.prompt], device=module.device), FirstToken()
    new = request.max_new_tokens
    out = module.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False,
        pad_token_id=0, streamer=first,
    )  # fmt: skip
    _whole(out.shape[1] - ids.shape[1], new)
    return first.at_s


class PeerAnswer(NamedTuple):
    """Seconds from the question to the first token, and to the last."""

    first_s: float
    all_s: float


def answer(module: Module, request: Request) -> PeerAnswer:
    """One answer by `generate`, nothing else running; its streamer waits for every token."""
    start = time.perf_counter()
    first = generate(module, request)
    return PeerAnswer(first - start, time.perf_counter() - start)


def queue_waits(requests: list[Request], answers: dict[int, PeerAnswer]) -> list[float]:
    """TTFT of each request in a queue before `generate`, from what an answer to a prompt of its length takes."""
    free_s, waits = 0.0, []
    for request in sorted(requests, key=lambda request: request.arrival_s):
        took = answers[len(request.prompt)]
        begin = max(free_s, request.arrival_s)
        waits.append(begin + took.first_s - request.arrival_s)
        free_s = begin + took.all_s
    return waits


def batched(module: Module, requests: list[Request], kept: bool = False) -> float:
    """New tokens a second of `generate_batch`: continuous batching over a paged cache. All arrive at once.

    As people call it, each call makes its manager and captures anew. `kept`: the manager stays, sized for the first
    call, so that later ones capture nothing: `release` ends it.
    Not inside `inference_mode`, where it fails every request and says so nowhere.
    """
    on_gpu = module.device.type == "cuda"
    if not on_gpu:
        torch.set_num_threads(2)
    (new,) = {request.max_new_tokens for request in requests}
    settings = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0)
    blocks = sum(-(-(len(request.prompt) + new) // 256) for request in requests) + 1
    sizes: dict[str, Any] = {} if on_gpu else {"max_batch_tokens": 512}  # on a GPU it sizes its batches itself
    if any(field.name == "auto_switch_to_flash" for field in dataclasses.fields(ContinuousBatchingConfig)):
        sizes["auto_switch_to_flash"] = False  # paged SDPA was the faster of the two on a GPU
    paging = ContinuousBatchingConfig(num_blocks=blocks, **sizes)
    start = time.perf_counter()
    answers = module.generate_batch(
        [list(request.prompt) for request in requests], settings, paging, persistent_manager=kept
    )
    took = time.perf_counter() - start
    _whole(sum(len(answer.generated_tokens) for answer in answers.values()), new * len(requests))
    return new * len(requests) / took


def release(module: Module) -> None:
    """Ends the manager that `batched` left, and gives its memory back."""
    module.destroy_cached_continuous_batching_manager()


@torch.inference_mode()
def step_s(module: Module, prompts: list[list[int]], steps: int) -> float:
    """Median seconds of a decode step on one thread, with the model's own cache; the prompts are equally long."""
    torch.set_num_threads(1)
    out = module(input_ids=torch.tensor(prompts, device=module.device), use_cache=True, logits_to_keep=1)
    times = []
    for _ in range(steps):
        token = out.logits[:, -1:].argmax(-1)
        start = time.perf_counter()
        out = module(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _whole(made: int, wanted: int) -> None:
    if made != wanted:
        raise EngineError(f"the peer gave {made} new tokens where {wanted} were asked; its figure would be wrong")
