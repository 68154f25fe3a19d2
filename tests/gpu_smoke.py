"""Does what is shipped run on this machine's GPUs? Every preset, a spill, a cancel, an interrupt; under three minutes.

    python3 tests/gpu_smoke.py                  # one GPU as both devices; of two or more, the first two as well
    python3 tests/gpu_smoke.py --device cpu     # the same on cores
    compute-sanitizer python3 tests/gpu_smoke.py --only "16 bits, checksums on"     # some of it, byte by byte

From the checkout's root, with torch and transformers and nothing installed. A line a check; the last one says green or
names what failed, and the exit code is 1 then. In fp32 every token is the reference's best, or nearly ties with it. In
16 bits, where paged kernels and graphs run, logits stay as near to fp32's as Hugging Face's own 16 bits do, or nearly.
"""

import argparse
import contextlib
import faulthandler
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from unittest.mock import patch

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from engine_tools import check_run, expected_logits, joined, lengths, overflowing, prompt_of, started, threads  # noqa: E402

from disagg.plan.config import PRESETS, Config  # noqa: E402
from disagg.plan.link import Link  # noqa: E402
from disagg.plan.request import Request  # noqa: E402
from disagg.run.attention.choice import describe as attention_in_words  # noqa: E402
from disagg.run.engine import Engine  # noqa: E402
from disagg.run.gpu.machine import gpu_in_words  # noqa: E402
from disagg.run.gpu.sm_split import describe  # noqa: E402
from disagg.run.model.model import Model, load_model  # noqa: E402

HUNG_S = 600  # then every thread's stack is written, and the process ends
LONG = 1500  # tokens of an answer that is stopped
FAR = 4  # times Hugging Face's own error in 16 bits; K/V of another place give tens of times as much
HANDED_OFF = [name for name, fields in PRESETS.items() if fields.get("prefill_workers") != 0]
Devices = tuple[str, str]  # prefill's and decode's


@cache
def model_on(device: str, name: str = "tiny", dtype: str = "float32") -> Model:
    return load_model(name, dtype=dtype, device=device)


@contextlib.contextmanager
def opened(preset: str, devices: Devices, model: Model | None = None, **changes) -> Iterator[Engine]:
    """An engine over a model that is shared; when it is closed, none of its threads is left."""
    model = model or model_on(devices[1])
    blocks = 512 if devices[1] == "cpu" else 32
    sizes = dict(prefill_blocks=blocks, decode_blocks=blocks)
    if PRESETS[preset].get("host_blocks", 0) is None:
        sizes["host_blocks"] = blocks
    fields = dict(model=model.name, dtype=str(model.shape.dtype).removeprefix("torch."))
    places = dict(prefill_device=devices[0], decode_device=devices[1])
    before = threads()
    with Engine(Config.preset(preset, **{**fields, **places, **sizes, **changes}), model, lambda text: None) as engine:
        yield engine
    assert threads() == before, f"still running: {threads()}"


def check_start(request: Request, result, reason: str):
    """An answer that was stopped: why it ended, and that it is right as far as it went."""
    assert result.finish_reason == reason, f"ended as {result.finish_reason}: {result.error}"
    logits = expected_logits(request.prompt, result.token_ids)
    gaps = logits.max(-1).values - logits[torch.arange(len(logits)), result.token_ids]
    assert gaps.max() <= 1e-3, f"token {int(gaps.argmax())} is {float(gaps.max()):.3g} below the reference's best"


def check_shared(engine: Engine, model: Model):
    """Workers on the model's device have modules of their own and its weights."""
    ours = {weight.data_ptr() for weight in model.module.parameters()}
    for name, worker in engine.executor.workers.items():
        stage = worker.prefill or worker.decode
        if stage.cache.device == next(model.module.parameters()).device:
            theirs = {weight.data_ptr() for weight in stage.model.module.parameters()}
            assert theirs == ours, f"{name} has weights of its own"


def serves(preset: str, devices: Devices, **changes):
    requests = lengths((1, 9), (16, 12), (33, 1), (100, 8))
    with opened(preset, devices, **changes) as engine:
        check_shared(engine, model_on(devices[1]))
        check_run(engine.serve(requests), requests)


def spills(devices: Devices, **changes):
    requests = overflowing()
    sizes = dict(block_size=16, chunk_tokens=256, decode_blocks=8, host_blocks=8, verify_kv=True)
    with opened("paged", devices, **sizes, **changes) as engine:
        run = engine.serve(requests)
    assert run.counts.get("spills") and run.counts.get("fetches"), f"nothing was spilled: {run.counts}"
    check_run(run, requests)


def cancels(devices: Devices):
    long, rest = Request(prompt_of(20, 1), LONG, ignore_eos=True), lengths((16, 6))
    with opened("streamed", devices) as engine:
        handle = engine.submit(long)
        next(iter(handle))  # it has begun
        handle.cancel()
        check_start(long, handle.result(60), "cancelled")
        check_run(engine.serve(rest), rest)


def interrupts(devices: Devices):
    long, rest = [Request(prompt_of(20, n), LONG, ignore_eos=True) for n in range(3)], lengths((16, 6))
    over = threading.Event()

    def press(engine: Engine):
        while not over.wait(0.001):
            if any(handle.so_far.token_ids for handle in engine.open_handles()):
                engine.interrupt()
                return

    with opened("streamed", devices) as engine:
        pressing = started(partial(press, engine))
        run = engine.serve(long)
        over.set()
        joined(pressing)
        assert run.interrupted and any(result.token_ids for result in run.results), "nobody interrupted it"
        for request, result in zip(long, run.results, strict=True):
            if result.token_ids:
                check_start(request, result, "cancelled")
        check_run(engine.serve(rest), rest)


def scattered(preset: str, devices: Devices, name: str):
    """16 bits, where no blocks lie in few enough runs for a copy engine."""
    with patch("disagg.run.gpu.hand_off_turn.MOST_RUNS", 0):
        half(preset, devices, name, verify_kv=True)


def half(preset: str, devices: Devices, name: str, **changes):
    """16 bits: forced texts, and every logit against fp32's."""
    model = model_on(devices[1], name, "bfloat16")
    texts, exact, allowed = references(devices[1], name)
    requests = [Request(text[:-8], 8, force_ids=text[-8:], keep_logits=True) for text in texts]
    few = dict(compile=False, max_batch=4, chunk_tokens=256, verify_kv=False)  # sizes to capture
    with opened(preset, devices, model, **{**few, **changes}) as engine:
        run = engine.serve(requests)
        for result in run.results:
            assert len(result.logits) == 8, f"ended as {result.finish_reason}: {result.error}"
        if devices[0] != "cpu":
            torch.cuda.synchronize()
        found = torch.cat([torch.stack(result.logits).float().cpu() for result in run.results])
    off = float((found - exact).square().mean().sqrt())
    assert off <= FAR * allowed, f"logits are off by {off:.3g} rms, Hugging Face's own by {allowed:.3g}"


@cache
@torch.inference_mode()
def references(device: str, name: str) -> tuple[list[list[int]], torch.Tensor, float]:
    """Texts, fp32's logits before the last 8 tokens of each, and the rms error of Hugging Face's module in 16 bits."""
    texts, module = [prompt_of(length, length) for length in (10, 24, 41, 108)], model_on(device, name, "bfloat16")

    def logits(module: torch.nn.Module) -> torch.Tensor:
        ids = [torch.tensor([text], device=device) for text in texts]
        return torch.cat([module(input_ids=each).logits[0, -9:-1].float().cpu() for each in ids])

    module = module.reference()
    theirs, exact = logits(module), logits(module.float())
    return texts, exact, float((theirs - exact).square().mean().sqrt())


def checks(device: str) -> Iterator[tuple[str, Callable]]:
    first = "cpu" if device == "cpu" else "cuda:0"
    one, large = (first, first), "tiny" if device == "cpu" else "random-qwen3-0.6b"
    for preset in PRESETS:
        yield f"preset {preset}", partial(serves, preset, one)
    for route, preset in (("bulk", "split"), ("direct", "streamed"), ("staged", "staged")):
        yield f"checksums on {route}", partial(serves, preset, one, verify_kv=True)
    yield "staged, overlap=False", partial(serves, "staged", one, overlap=False, verify_kv=True)
    yield "streamed, overlap=False", partial(serves, "streamed", one, overlap=False)
    if device != "cpu":
        yield "staged, pinned=False", partial(serves, "staged", one, pinned=False, verify_kv=True)
        yield "staged, pinned=False, on a dialled link", partial(serves, "staged", one, pinned=False, link=Link(1e9))
        yield "a spill and a fetch, pinned=False", partial(spills, one, pinned=False)
    if device != "cpu" and describe().startswith("possible"):
        yield "preset streamed, sm_split=32", partial(serves, "streamed", one, sm_split=32)
    yield "a spill and a fetch", partial(spills, one)
    yield "a cancel", partial(cancels, one)
    yield "an interrupt", partial(interrupts, one)
    for preset in PRESETS:
        yield f"16 bits, preset {preset}", partial(half, preset, one, large)
    for preset in ("streamed", "staged"):
        yield f"16 bits, checksums on {preset}", partial(half, preset, one, large, verify_kv=True)
        yield f"16 bits, {preset}, overlap=False", partial(half, preset, one, large, overlap=False)
        # One request at a time has a target: passes whose layers leave late, and others whose layers leave at once.
        tight = dict(decode_blocks=4, block_size=64, chunk_tokens=64, verify_kv=True)
        yield f"16 bits, {preset}, decode full, small passes", partial(half, preset, one, large, **tight)
    yield "16 bits, checksums on staged, blocks scattered", partial(scattered, "staged", one, large)
    if device != "cpu":
        yield "16 bits, staged on a dialled link", partial(half, "staged", one, large, link=Link(1e9))
        slow = dict(link=Link(1e9), block_size=64, chunk_tokens=64, ring_slots=2)
        yield "16 bits, staged on a dialled link, small passes", partial(half, "staged", one, large, **slow)
    if device != "cpu" and describe().startswith("possible"):
        yield "16 bits, staged, sm_split=32", partial(half, "staged", one, large, sm_split=32, verify_kv=True)
    if device != "cpu" and torch.cuda.device_count() > 1:
        two = ("cuda:0", "cuda:1")
        for preset in (*HANDED_OFF, "two_colocated"):
            for peer in (True, False):
                name = f"two GPUs, preset {preset}{'' if peer else ', no peer access'}"
                yield name, partial(serves, preset, two, peer_access=peer, verify_kv=True)
        for preset in ("streamed", "staged"):
            yield f"16 bits, two GPUs, checksums on {preset}", partial(half, preset, two, large, verify_kv=True)
        yield "16 bits, two GPUs, blocks scattered", partial(scattered, "staged", two, large)


def run(found: Iterator[tuple[str, Callable]], where: str) -> int:
    """A line a check; the exit code."""
    failed, done, began = [], 0, time.perf_counter()
    for name, check in found:
        done, start = done + 1, time.perf_counter()
        try:
            check()
            word = "ok"
        except Exception:
            traceback.print_exc()
            failed.append(name)
            word = "FAILED"
        print(f"{word:6} {time.perf_counter() - start:6.1f} s  {name}", flush=True)
    took = f"{done} checks in {time.perf_counter() - began:.0f} s on {where}"
    bad = f"failed: {'; '.join(failed)}" if failed else "" if done else "failed: nothing was checked"
    print(f"gpu-smoke: {bad or 'green'} ({took})", flush=True)
    return int(bool(bad))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", default="", metavar="TEXT", help="checks whose names have this in them")
    given = parser.parse_args(arguments)
    device = given.device
    if device == "cuda" and not torch.cuda.is_available():
        print("gpu-smoke: failed: torch finds no CUDA device here; --device cpu runs the same checks on cores")
        return 1
    faulthandler.dump_traceback_later(HUNG_S, exit=True)
    print(attention_in_words(device), flush=True)
    try:
        found = (each for each in checks(device) if given.only in each[0])
        return run(found, "cores" if device == "cpu" else gpu_in_words())
    finally:
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    sys.exit(main())
