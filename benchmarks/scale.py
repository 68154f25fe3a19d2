"""`python -m benchmarks scale`: what an event costs the one controller of many workers; the door for clients under
load; and what a public load generator says of it.

The door needs the extra `serve`; `client_agrees` also guidellm: `pip install guidellm`, or its program's path in
GUIDELLM, since it may want an environment of its own.
"""

import asyncio
import itertools
import json
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import Say, known
from disagg import Config, Engine, Request
from disagg.plan.commands import Command
from disagg.plan.errors import PackageError
from disagg.plan.events import Event
from disagg.plan.request import Job
from disagg.run.model.model import Model, load_model
from disagg.serve import serve
from disagg.show.report import LeftOut, Row
from disagg.trace.results import Result
from disagg.twin.simulated_engine import SimulatedEngine, Speeds

REQUESTS, AT_ONCE, PROMPTS = 2000, 24, 12  # of the soak
FEW, FEW_BESIDE = 8, 2  # requests of the load generator, and as many at a time
BAD = (b"", b"[1]", b"{", b'{"prompt": ""}', b'{"prompt": "a", "n": 2}', b'{"prompt": "a", "max_tokens": 1000000}')
WAIT_S = 60.0
WORKERS = {2: 300, 16: 2500, 64: 10_000}  # and how many requests decode on them at a time
EVENTS = 4000
#: Passes are short beside steps, so that many requests are soon running.
FAST = Speeds(prefill_pass=10_000, prefill_token=100, step=1_000_000, step_row=0, step_token=0)


def suite(say: Say) -> Iterator[Row | LeftOut]:
    for workers, running in WORKERS.items():
        say(f"one controller, {workers} workers, {running:,} requests decode")
        yield controller_row(workers, running, EVENTS)
    config = Config.preset("dynamic", model="tiny")
    try:
        model = load_model("tiny")
        with Engine(config, model) as engine:
            yield from soak_rows(say, engine, model)
    except PackageError as error:
        yield LeftOut("serve_soak", str(error))
        return
    yield from agreement_rows(say)


# ---- one controller --------------------------------------------------------------------------------------------------


def controller_row(workers: int, running: int, events: int) -> Row:
    """The mean of what an event costs, in a world whose devices cost nothing; half of the workers prefill."""
    half = workers // 2
    sizes = {"prefill_blocks": 8192, "decode_blocks": 100_000, "host_blocks": 0, "max_batch": -(-running // half)}
    config = Config.preset("streamed", model="tiny", prefill_workers=half, decode_workers=half, **sizes)
    world = SimulatedEngine(config, FAST, record=False)
    for number in range(running):
        world.submit(Job(number, (1,) * 8, 100_000, 0))
    while sum(len(worker.rows) for worker in world.controller.state.decodes) < running - half:
        world.step()
    handle, took = world.controller.handle, defaultdict[str, list[int]](list)

    def timed(event: Event, now_ns: int) -> list[Command]:
        began = time.perf_counter_ns()
        commands = handle(event, now_ns)
        took[type(event).__name__].append(time.perf_counter_ns() - began)
        return commands

    vars(world.controller)["handle"] = timed  # of this world alone
    for number in itertools.count(running):
        if sum(map(len, took.values())) >= events:
            break
        world.submit(Job(number, (1,) * 100, 3, world.now_ns))
        for _ in range(10):
            world.step()
    world.close()
    kinds = ", ".join(f"{kind} {statistics.mean(ns) / 1e3:.0f} ({len(ns)})" for kind, ns in sorted(took.items()))
    mean_us = statistics.mean(itertools.chain.from_iterable(took.values())) / 1e3
    note = f"mean; {workers} workers, {running:,} requests decode; by event: {kinds}"
    return Row(f"controller_us_per_event[{workers}]", mean_us, "µs", 200, events, note)


# ---- many clients ----------------------------------------------------------------------------------------------------


class Clients:
    """Of one server: some wait for their answer, some go away meanwhile, some send what is no request."""

    def __init__(self, url: str, token: str, expected: list[tuple[list[int], Result]]) -> None:
        self._url, self._token, self._expected = url, token, expected
        self.counts, self.memory, self._random = Counter[str](), list[int](), random.Random(1)

    async def ask_all(self, say: Say) -> None:
        import httpx

        turns, limits = asyncio.Semaphore(AT_ONCE), httpx.Limits(max_connections=2 * AT_ONCE)
        headers = {"Authorization": f"Bearer {self._token}"}
        async with httpx.AsyncClient(base_url=self._url, headers=headers, timeout=WAIT_S, limits=limits) as client:

            async def one(number: int) -> None:
                async with turns:
                    await self._ask(client, number)
                    self.memory.append(psutil.Process().memory_info().rss)
                    if len(self.memory) % 250 == 0:
                        say(f"{len(self.memory)} of {REQUESTS} requests")

            await asyncio.gather(*map(one, range(REQUESTS)))

    async def _ask(self, client: Any, number: int) -> None:
        if number % 10 == 9:
            found = await client.post("/completions", content=self._random.choice(BAD))
            self.counts["bad, refused" if found.status_code == 400 else "bad, not refused"] += 1
            return
        prompt, result = self._expected[number % PROMPTS]
        body = {"prompt": prompt, "max_tokens": len(result.token_ids), "temperature": 0, "ignore_eos": True}
        if number % 3 == 0:
            await self._leave(client, body)
        elif number % 2:
            found = (await client.post("/completions", json=body)).json()
            self._count(found["choices"][0]["text"], result)
        else:
            async with client.stream("POST", "/completions", json={**body, "stream": True}) as got:
                lines = [line.removeprefix("data: ") async for line in got.aiter_lines() if line]
            texts = [json.loads(line)["choices"][0]["text"] for line in lines[:-1]]
            self._count("".join(texts) if lines[-1] == "[DONE]" else "", result)

    async def _leave(self, client: Any, body: dict[str, Any]) -> None:
        after = self._random.randrange(4)
        async with client.stream("POST", "/completions", json={**body, "stream": True}) as got:
            async for _ in got.aiter_lines():
                if (after := after - 1) < 0:
                    break
        self.counts["left"] += 1

    def _count(self, text: str, result: Result) -> None:
        self.counts["right" if text == result.text else "wrong"] += 1


def soak_rows(say: Say, engine: Engine, model: Model) -> Iterator[Row]:
    draw = random.Random(0)
    prompts = [draw.choices(range(256), k=draw.randrange(4, 60)) for _ in range(PROMPTS)]
    run = engine.serve([Request(prompt, draw.randrange(4, 40), ignore_eos=True) for prompt in prompts], record=False)
    with serve(engine) as server:
        clients = Clients(server.url, server.token, list(zip(prompts, run.results, strict=True)))
        asyncio.run(clients.ask_all(say))
        asyncio.run(_quiet(engine))
    counts = clients.counts
    lost = REQUESTS - sum(counts.values())
    held = sum(pool.held for pool in engine.controller.state.pools()) + len(engine.open_handles())
    held += sum(thread.name == "disagg answer" for thread in threading.enumerate())
    note = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
    yield Row("serve_soak[lost]", lost + counts["bad, not refused"], "requests", 0, REQUESTS, note)
    yield Row("serve_soak[wrong]", counts["wrong"], "answers", 0, counts["right"] + counts["wrong"], "as Engine's")
    yield Row("serve_soak[leaked]", held, "things", 0, note="blocks, handles and threads, when all clients are gone")
    second, last = (
        statistics.median(clients.memory[part])
        for part in (slice(REQUESTS // 4, REQUESTS // 2), slice(-(REQUESTS // 4), None))
    )
    note = f"{last / 2**20:.0f} MB after {second / 2**20:.0f} MB; the clients' own included"
    yield Row("serve_soak[memory]", last / second, "×", 1.05, note=note)


async def _quiet(engine: Engine) -> None:
    """Waits until what the last clients left has ended, but not for ever."""
    for _ in range(1000):
        if engine.idle and not any(pool.held for pool in engine.controller.state.pools()):
            return
        await asyncio.sleep(0.01)


# ---- a load generator ------------------------------------------------------------------------------------------------


def agreement_rows(say: Say) -> Iterator[Row | LeftOut]:
    """guidellm's TTFT and ITL of streamed answers, against those of the engine's own results of the same requests."""
    program = os.environ.get("GUIDELLM") or shutil.which("guidellm")
    if program is None:
        yield LeftOut("client_agrees", "guidellm is not installed: `pip install guidellm`, or name it in GUIDELLM")
        return
    model = load_model("smollm2")
    served: list[Result] = []
    say("guidellm asks")
    with (
        Engine(Config.preset("streamed"), model) as engine,
        serve(engine) as server,
        tempfile.TemporaryDirectory() as at,
    ):
        ended = server.door._metrics.ended

        def keep(result: Result, finish: str) -> None:
            served.append(result)
            ended(result, finish)

        vars(server.door._metrics)["ended"] = keep
        metrics = guidellm(program, server.url.removesuffix("/v1"), server.token, Path(at))
    served = [result for result in served if result.finish_reason == "length"]
    ours = {
        "ttft": statistics.median(known(result.ttft_s) for result in served),
        "itl": statistics.median(statistics.mean(result.itl_s) for result in served if result.itl_s),
    }
    for name, key in (("ttft", "time_to_first_token_ms"), ("itl", "inter_token_latency_ms")):
        theirs = metrics[key]["successful"]["percentiles"]["p50"] / 1e3
        note = f"p50: guidellm {1e3 * theirs:.1f} ms, results {1e3 * ours[name]:.1f} ms"
        yield Row(f"client_agrees[{name}]", 100 * abs(theirs / ours[name] - 1), "%", 5, len(served), note)


def guidellm(program: str, url: str, token: str, folder: Path) -> dict[str, Any]:
    """Its metrics of a short run; its tokenizer is the model's own."""
    from disagg.run.model.weights import smollm2_folder

    options = {
        "backend": f"kind=openai_http,target={url},model=smollm2,api_key={token}",
        "profile": f"kind=concurrent,streams={FEW_BESIDE}" if FEW_BESIDE > 1 else "kind=synchronous",
        "constraint": f"kind=max_requests,count={FEW}",
        "data": "kind=synthetic_text,prompt_tokens=60,output_tokens=24",
        "tokenizer": f"kind=huggingface_auto,model={smollm2_folder()}",
        "output": f"kind=json,path={folder / 'found.json'}",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run(
        [program, "run", *words, "--disable-console"], check=True, capture_output=True, env=offline, timeout=300
    )
    [found] = json.loads((folder / "found.json").read_text())["benchmarks"]
    return found["metrics"]
