"""Helpers of the engine's tests: one tiny model, its reference, gates, and a watch on the controller."""

import contextlib
import functools
import itertools
import random
import threading

import torch

from disagg import Config, Engine, Request
from disagg.plan.config import PRESETS
from disagg.plan.request import Stage
from disagg.run.model.model import load_model

LIMIT_S = 60.0  # no test comes near it; it turns a hang into a failure
TOLERANCE = 5e-4  # logits in fp32; 64 x 64 teacher-forced tokens differed by 1e-4 at most
NEAR_TIE = 1e-3  # two best logits closer than this may change places by rounding


@functools.cache
def tiny():
    return load_model("tiny")


@functools.cache
def reference():
    """The untouched module of Hugging Face, with its own attention."""
    return tiny().reference()


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return random.Random(f"{seed} {length}").choices(range(256), k=length)


def generated(prompt, new: int) -> list[int]:
    """What the reference's own `generate` answers, greedily, the end of sequence included."""
    with torch.inference_mode():
        ids = torch.tensor([list(prompt)])
        whole = torch.ones_like(ids)  # else every id that equals the padding's is masked
        out = reference().generate(ids, attention_mask=whole, max_new_tokens=new, do_sample=False, pad_token_id=0)
    return out[0, len(prompt) :].tolist()


def expected_logits(prompt, tokens) -> torch.Tensor:
    """The reference's logits [n, vocab] before each of `tokens`, in one forward of its own."""
    with torch.inference_mode():
        ids = torch.tensor([[*prompt, *tokens]])
        return reference()(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()


def check_greedy(prompt, result, new: int, ignore_eos: bool = False):
    """Every token is the reference's best, or nearly ties with it; and the answer ends where it should."""
    tokens = result.token_ids
    assert tokens, f"request {result.request} gave no token: {result.finish_reason} {result.error}"
    logits = expected_logits(prompt, tokens)
    gaps = logits.max(dim=-1).values - logits[torch.arange(len(tokens)), tokens]
    assert gaps.max() <= NEAR_TIE, f"token {int(gaps.argmax())} is {float(gaps.max()):.3g} below the reference's best"
    if not ignore_eos and tokens[-1] in tiny().eos_ids:
        assert result.finish_reason == "eos"
    else:
        assert (result.finish_reason, len(tokens)) == ("length", new)
    assert ignore_eos or not set(tokens[:-1]) & set(tiny().eos_ids), "the answer goes on after its end"


def check_run(run, requests):
    """Nothing odd happened, and each request has the reference's tokens."""
    assert run.anomalies == 0 and not run.interrupted
    for request, result in zip(requests, run.results, strict=True):
        check_greedy(request.prompt, result, request.max_new_tokens, request.ignore_eos)


def check_logits(prompt, result):
    """Kept logits equal the reference's within rounding."""
    assert len(result.logits) == len(result.token_ids)
    assert logit_error(prompt, result) <= TOLERANCE


def logit_error(prompt, result) -> float:
    """Largest difference from the reference's logits; NaN counts as infinite."""
    difference = (torch.stack(result.logits) - expected_logits(prompt, result.token_ids)).abs()
    return float(difference.nan_to_num(nan=torch.inf).max())


def small(preset: str = "streamed", **changes) -> Config:
    """A preset on `tiny`, with pools of a few thousand tokens."""
    sizes = dict(model="tiny", prefill_blocks=64, decode_blocks=64)
    if PRESETS[preset].get("host_blocks", 0) is None:
        sizes["host_blocks"] = 64
    return Config.preset(preset, **{**sizes, **changes})


def lengths(*pairs, **fields) -> list[Request]:
    """Requests of (prompt tokens, new tokens)."""
    return [Request(prompt_of(n, seed), new, **fields) for seed, (n, new) in enumerate(pairs)]


def overflowing(**fields) -> list[Request]:
    """Four requests of 5 blocks each in the end: they overflow 8."""
    return [Request(prompt_of(24, n), 48, ignore_eos=True, **fields) for n in range(4)]


def left_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("disagg")]


def started(*works) -> list[threading.Thread]:
    """A running thread for each."""
    made = [threading.Thread(target=work) for work in works]
    for thread in made:
        thread.start()
    return made


def joined(made: list[threading.Thread]):
    for thread in made:
        thread.join(LIMIT_S)
        assert not thread.is_alive()


class Monitor:
    """Checks the controller's books after every event, and lets a test wait for a state without sleeping."""

    def __init__(self, engine: Engine):
        self.engine, self.state = engine, engine.controller.state
        self.events: list = []  # in the order in which the controller took them
        self.error: BaseException | None = None
        self._changed = threading.Condition()
        self._handle = engine.controller.handle
        engine.controller.handle = self._watched

    def _watched(self, event, now_ns):
        with self._changed:
            commands = self._handle(event, now_ns)
            self.events.append(event)
            try:
                self.state.check()
            except AssertionError as error:
                self.error = self.error or error
            self._changed.notify_all()
        return commands

    def until(self, condition, what: str = "the awaited state"):
        """Returns once `condition(state)` holds after some event."""
        with self._changed:
            came = self._changed.wait_for(lambda: condition(self.state), LIMIT_S)
            now = {r.id: (r.stage.value, r.gate) for r in self.state.records.values()}
        assert came, f"{what} never came; now {now}"

    def until_stage(self, request: int, stage: Stage):
        self.until(lambda state: request in state.records and state.records[request].stage is stage, stage.value)

    def until_idle(self):
        self.until(lambda state: not held(self.engine), "idleness")


def held(engine: Engine) -> dict:
    """Whatever requests, passes, steps, transfers and blocks the controller still holds."""
    state = engine.controller.state
    found = {"records": len(state.records), "transfers": len(state.transfers), "deadlines": len(list(state.deadlines))}
    found["passes"] = sum(worker.passing is not None for worker in state.prefills)
    found["steps"] = sum(len(worker.steps) for worker in state.decodes)
    found |= {pool.name: pool.held for pool in state.pools()}
    return {name: count for name, count in found.items() if count}


def threads() -> list[str]:
    return sorted(thread.name for thread in left_threads())


@contextlib.contextmanager
def opened(config: Config, anomalies: int = 0, broken: bool = False):
    """An engine over the shared model. When it is closed nothing may be held or running, and every state must agree."""
    before = threads()
    engine = Engine(config, tiny())
    engine.watch = Monitor(engine)
    try:
        yield engine
    finally:
        engine.close()
    assert engine.watch.error is None, engine.watch.error
    assert threads() == before
    if not broken:
        assert engine.breach is None, engine.breach
        assert held(engine) == {}
        assert engine.executor.transfers.scheduler.progress == {}
        assert engine.executor.transfers.scheduler.ring.held == 0
        assert engine.executor.transfers.spilled == {}
        assert engine.controller.state.counts["anomalies"] == anomalies
        assert engine.controller.state.counts["padding_mismatches"] == 0


def answered(config: Config, requests: list[Request]):
    """The run of these requests on a new engine, checked."""
    with opened(config) as engine:
        run = engine.serve(requests)
    check_run(run, requests)
    return run


class Gate:
    """Holds a thread until the test opens it."""

    def __init__(self):
        self.entered, self._opened = threading.Event(), threading.Event()

    def hold(self):
        self.entered.set()
        assert self._opened.wait(LIMIT_S), "the gate was not opened"

    def wait(self):
        assert self.entered.wait(LIMIT_S), "no thread came to the gate"

    def open(self):
        self._opened.set()


def before(monkeypatch, owner, name: str, action):
    """Calls `action(*args)` before each call of a method; an exception of it takes the method's place."""
    tiny()  # loading probes the model, and is not what a test patches
    method = getattr(owner, name)

    def patched(self, *args, **kwargs):
        action(self, *args, **kwargs)
        return method(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, patched)


def after(monkeypatch, owner, name: str, action):
    """Calls `action(*args, answer)` after each call of a method."""
    tiny()
    method = getattr(owner, name)

    def patched(self, *args):
        answer = method(self, *args)
        action(self, *args, answer)
        return answer

    monkeypatch.setattr(owner, name, patched)


def fail_nth(monkeypatch, owner, method: str, nth: int, error: BaseException, condition=lambda *args: True):
    """The nth call of a method whose arguments meet the condition raises."""
    calls = itertools.count(1)

    def maybe(*args):
        if condition(*args) and next(calls) == nth:
            raise error

    before(monkeypatch, owner, method, maybe)


def held_at(monkeypatch, owner, name: str, condition=lambda *args: True) -> Gate:
    """A gate before each call of a method whose arguments meet the condition."""
    gate = Gate()
    before(monkeypatch, owner, name, lambda *args: condition(*args) and gate.hold())
    return gate


def on_lane(role: str):
    """Is it a copy of this lane? Of the arguments of `HostLane._move`."""
    return lambda lane, copy: copy.lane.role == role
