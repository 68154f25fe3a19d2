"""Threads that serve, submit, cancel, ask why, retune, interrupt and close one engine at once; seeded.

    python tests/hammer.py --worlds 300

In each world everybody must hear an answer or an error of ours, every request must end once, and what the run counts
must be what the controller did. Prints a line a finding; exits 1 where there is one.
"""

import argparse
import random
import sys
import threading
from collections import Counter

from disagg import Config, Engine, Link, Request
from disagg.plan.errors import DisaggError
from disagg.run.model.model import load_model

SWITCH_S = 1e-6
PRESETS = ("baseline", "colocated", "two_colocated", "split", "streamed", "staged", "paged", "dynamic")
ENDS = ("eos", "length", "cancelled", "failed")
LIMIT_S = 120.0


class SimulatedEngine:
    """One engine and what its users do; `found` is what went wrong."""

    def __init__(self, seed: int, model):
        self.dice, self.found, self.handles, self.runs = random.Random(seed), [], [], []
        self.seen: Counter[str] = Counter()
        preset = self.dice.choice(PRESETS)
        blocks = self.dice.choice((12, 24, 64))
        sizes = dict(prefill_blocks=blocks, decode_blocks=blocks, max_batch=self.dice.choice((2, 8)))
        sizes |= dict(host_blocks=24) if preset in ("paged", "dynamic") else {}
        self.settings: dict[str, int] = {}
        self.config = Config.preset(preset, model="tiny", **sizes)
        self.engine = Engine(self.config, model)

    def request(self, dice: random.Random) -> Request:
        prompt = dice.choices(range(256), k=dice.randrange(1, 60))
        return Request(prompt, dice.randrange(1, 12), ignore_eos=dice.random() < 0.5)

    def serve(self, dice):
        asked = [self.request(dice) for _ in range(dice.randrange(0, 4))]
        run = self.engine.serve(asked, record=dice.random() < 0.8)
        self.runs.append((asked, run))

    def submit(self, dice):
        handle = self.engine.submit(self.request(dice))
        self.handles.append(handle)
        if dice.random() < 0.3:
            "".join(handle)

    def cancel(self, dice):
        for handle in self.handles[-2:]:
            handle.cancel()

    def why(self, dice):
        for handle in self.engine.open_handles()[:2]:
            self.engine.why(handle)

    def retune(self, dice):
        what = dice.choice(("policy", "link", "decode_blocks"))
        if what == "decode_blocks":
            self.engine.retune(decode_blocks=dice.randrange(6, 13))
        values = {"policy": dice.choice(("fcfs", "shortest")), "link": dice.choice((None, Link(1e9)))}
        self.engine.retune(**{what: values.get(what)})

    def batch(self, dice):
        """Only one user changes this, and only one the next: neither change may be lost."""
        self._set("max_batch", dice.randrange(1, 9))

    def chunk(self, dice):
        self._set("chunk_tokens", 16 * dice.randrange(1, 9))

    def _set(self, name: str, value: int):
        self.engine.retune(**{name: value})
        self.settings[name] = value

    def interrupt(self, dice):
        self.engine.interrupt()

    def user(self, seed: int, actions: tuple[str, ...], times: int):
        dice = random.Random(seed)
        for _ in range(times):
            name = dice.choice(actions)
            try:
                getattr(self, name)(dice)
                self.seen[name] += 1
            except DisaggError as error:
                self.seen[f"{name}: {type(error).__name__}"] += 1
                if "the controller failed" in str(error) or "nothing is under way" in str(error):
                    self.found.append(f"{name}: {error}")
            except BaseException as error:
                self.found.append(f"{name} raised {type(error).__name__}: {error}")

    def run(self):
        often = ("submit", "cancel", "why", "retune", "interrupt")
        users = [(("serve",), 3), (("serve", "submit"), 4), (often, 12), (("why", "submit"), 12)]
        users += [(("batch",), 40), (("chunk",), 40)]
        threads = [threading.Thread(target=self.user, args=(self.dice.random(), *user), daemon=True) for user in users]
        for thread in threads:
            thread.start()
        closes_early = self.dice.random() < 0.3
        for thread in threads[3:] if closes_early else threads:
            thread.join(LIMIT_S)
        self.engine.close()
        for thread in threads:
            thread.join(LIMIT_S)
            if thread.is_alive():
                self.found.append("somebody waits for ever")
        self.check()

    def check(self):
        engine, state = self.engine, self.engine.controller.state
        for handle in self.handles:
            if not handle.done or handle.so_far.finish_reason not in ENDS:
                self.found.append(f"request {handle.so_far.request} is lost: {handle.so_far.finish_reason!r}")
        for asked, run in self.runs:
            for request, result in zip(asked, run.results, strict=True):
                if result.finish_reason not in ENDS or len(result.token_ids) > request.max_new_tokens:
                    self.found.append(f"a served request is wrong: {result.finish_reason!r}")
                if result.finish_reason == "failed" and "fits" not in result.error and "blocks" not in result.error:
                    self.found.append(f"a served request failed: {result.error}")
            done = [r for r in run.results if r.finish_reason in ("eos", "length")]
            done = [r for r in done if len(r.token_ids) > 1]  # prefill alone gives the first token
            most = max((-(-(r.prompt_tokens + len(r.token_ids) - 1) // 16) for r in done), default=0)
            if most > run.peak_blocks["decode 0"] and len(state.decodes) == 1:
                self.found.append(f"peak of decode 0 is {run.peak_blocks['decode 0']}, a request held {most}")
            for pool, peak in run.peak_blocks.items():
                total = next(p.total for p in state.pools() if p.name == pool)
                if not 0 <= peak <= total:
                    self.found.append(f"peak of {pool} is {peak} of {total}")
            if any(count < 0 for count in run.counts.values()) or run.anomalies:
                self.found.append(f"counts are {run.counts}")
        held = {pool.name: pool.held for pool in state.pools() if pool.held}
        if held or state.records or state.transfers or engine.breach or state.counts["padding_mismatches"]:
            self.found.append(f"left over: {held} {list(state.records)} {list(state.transfers)} {engine.breach}")
        now = {name: getattr(engine.config, name) for name in self.settings}
        if engine.config != state.config or now != self.settings:
            self.found.append(f"{self.settings} were set; users see {now}, the controller {state.config}")


def hammer(worlds: int, first: int = 0, say=print) -> tuple[list[str], Counter]:
    """What went wrong in so many worlds, each with its seed; and what was done how often."""
    found, seen, before, model = [], Counter(), sys.getswitchinterval(), load_model("tiny")
    for seed in range(first, first + worlds):
        world = SimulatedEngine(seed, model)
        sys.setswitchinterval(SWITCH_S)
        try:
            world.run()
        finally:
            sys.setswitchinterval(before)
        found += [f"world {seed}: {what}" for what in world.found]
        for what in world.found:
            say(f"world {seed}: {what}")
        seen += world.seen
    return found, seen


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="the first world's seed")
    options = parser.parse_args()
    found, seen = hammer(options.worlds, options.first)
    print(", ".join(f"{name} {count}" for name, count in sorted(seen.items())))
    print(f"{options.worlds} worlds, {len(found)} findings")
    sys.exit(bool(found))
