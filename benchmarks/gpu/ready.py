"""How long from nothing to an engine that answers: a fresh process, with an empty compile cache and a kept one."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu.fixture import Stand
from disagg.plan.blocks import blocks_for
from disagg.plan.errors import EngineError
from disagg.show.report import Row

BARS = {"cold": 90, "warm": 30}
LONGEST_S = 400  # a process that takes longer is ended
CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton", "CUDA_CACHE_PATH": "cuda"}

READY = """
import json, sys, time
begin = time.perf_counter()
from disagg import Config, Engine, Request
imported = time.perf_counter()
with Engine(Config.preset("dynamic", **json.loads(sys.argv[1]))) as engine:
    built = time.perf_counter()
    engine.submit(Request([1, 2, 3, 4], 4, ignore_eos=True)).result()
    print("READY", imported - begin, built - imported, time.perf_counter() - built, flush=True)
"""


def rows(stand: Stand) -> Iterator[Row]:
    """Import, random weights, compile, capture, and a first answer; the second process finds the cache full."""
    stand.close()
    scale, device = stand.scale, stand.device
    options = dict(
        model=stand.name, dtype="bfloat16" if stand.on_gpu else "float32", prefill_device=device, decode_device=device,
        block_size=scale.block, chunk_tokens=scale.chunk, prefill_blocks=blocks_for(2 * scale.long, scale.block),
        decode_blocks=blocks_for(8 * scale.context, scale.block), max_batch=32, **stand.split,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        caches = {name: str(Path(folder) / place) for name, place in CACHES.items()}
        for name, bar in BARS.items():
            stand.say(f"a fresh process, {name} compile cache")
            total, parts = time_to_ready(options, caches)
            note = f"process start to first answer of `dynamic`, {name} cache; import {parts[0]:.1f}, "
            note += f"load, compile and capture {parts[1]:.1f}, first answer {parts[2]:.1f} s"
            yield Row(f"ready_s[{name}]", total, "s", bar, 1, note)


def time_to_ready(options: dict, caches: dict[str, str]) -> tuple[float, list[float]]:
    """Seconds of the whole, and of its parts. EngineError with the process's last words where it fails."""
    command = [sys.executable, "-c", READY, json.dumps(options)]
    with tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True,
                                   env={**os.environ, **caches})  # fmt: skip
        limit = threading.Timer(LONGEST_S, process.kill)
        limit.start()
        assert process.stdout  # it is a pipe
        try:
            line = next((line for line in process.stdout if line.startswith("READY")), None)
            took = time.perf_counter() - start  # closing the engine comes after it
            process.communicate()
        finally:
            limit.cancel()
        if line is None:
            errors.seek(0)
            raise EngineError(f"no answer within {took:.0f} s: {' '.join(errors.read().split()[-60:])}")
    return took, [float(part) for part in line.split()[1:]]
