"""The test stand: one shape on one device or a pair, how large the work is, and the one engine that is built at a time.

On a CPU the same rows run in small sizes; they prove that nothing fails on the way, and say nothing about a GPU.
"""

import gc
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from benchmarks.common import Say, known
from benchmarks.fixed_works import random_ids
from benchmarks.gpu.ceilings import DeviceLimits, measure, sustained_s
from disagg.plan.blocks import blocks_for
from disagg.plan.config import PRESETS, Config
from disagg.plan.controller import LIVE
from disagg.plan.errors import ConfigError
from disagg.plan.request import Request
from disagg.run.engine import Engine
from disagg.run.model.model import Model, load_model
from disagg.run.model.random_models import RANDOM, SHAPES
from disagg.show.plots.roofline import Sizes


@dataclass(frozen=True)
class Scale:
    """How large the work of the rows is, in tokens unless another unit stands beside it."""

    context: int = 1024
    batches: tuple[int, ...] = (1, 16, 64)
    steps: int = 48  # decode steps that all rows share, at least
    prompts: tuple[int, ...] = (256, 512, 1024, 2048, 8192)  # prefill alone
    streamed: int = 2048  # the prompt whose layers travel
    lengths: tuple[int, ...] = (256, 512, 1024, 2048, 4096, 8192)  # of prompts whose layers travel between two GPUs
    peer_bytes: tuple[int, ...] = (1 << 20, 4 << 20, 16 << 20, 64 << 20, 1 << 30)  # copies between two GPUs
    trace_requests: int = 100  # of each trace
    trace_longest: int = 12_000  # tokens of a request, prompt and answer
    long: int = 8192  # prompts that keep prefill busy
    long_count: int = 10
    residents: int = 16  # rows that decode beside something
    beside: int = 400  # new tokens of each of them
    hand_offs: int = 24  # that happen beside them
    mixed: tuple = (8, 512, 160, 4, 0.15)  # readers, their prompts, new tokens; long prompts, and the s after which
    repeats: int = 7
    dials: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0, 1.25, 1.6, 2.5, 4.0)  # transfer of a layer ÷ its compute
    dials_us: tuple[int, ...] = (50, 100, 200, 500, 1000, 2000, 5000, 10_000)
    dial_copies: int = 8  # requests that are handed off at each of those
    block: int = 256
    chunk: int = 2048
    work_a: tuple = (64, (128, 512, 1024), 64)  # requests, prompts drawn from, new tokens
    work_b: tuple = (256, 100, 1024)  # requests, least and most tokens, in and out
    rounds: int = 2
    one_by_one: int = 3  # requests of each length that `generate` answers alone
    exact: tuple = (64, 600, 32)  # texts, their longest prompt, forced tokens: fp32
    rounded: tuple = (32, 600, 40)  # the same in bfloat16
    cancels: tuple = (2000, 64)  # requests of which some are cancelled, and how many are open at a time
    paged: tuple = (64, 128, 3000)  # requests, prompt, new tokens
    side: int = 8192  # of the square matrices
    lasting_s: float = 0.4  # of products that sustain a load
    copied_bytes: int = 4 << 30
    pinned_bytes: int = 256 << 20


SMALL = Scale(
    context=128, batches=(1, 2), steps=4, prompts=(32, 256), streamed=256, long=256, long_count=6, residents=2,
    beside=200, hand_offs=6, mixed=(8, 32, 40, 4, 0.02), repeats=2, dials=(0.0, 4.0), dials_us=(2000,),
    dial_copies=2, block=16, chunk=256, work_a=(6, (8, 20), 6), work_b=(6, 8, 24), rounds=1, one_by_one=1,
    lengths=(32, 256), peer_bytes=(1 << 16,), trace_requests=6, trace_longest=200,
    exact=(8, 100, 24), rounded=(6, 100, 16), cancels=(100, 16), paged=(8, 10, 60), side=128, lasting_s=0.01,
    copied_bytes=1 << 20, pinned_bytes=1 << 20,
)  # fmt: skip


class Stand:
    """What the groups of rows share. `sm_split` is how many SMs decode keeps where prefill shares its GPU; a `pair` has
    a GPU for each. `device` is decode's, where the model is and ceilings are measured."""

    def __init__(self, shape: str, say: Say, sm_split: int = 32, pair: bool = False) -> None:
        self.shape, self.say = shape, say
        self.on_gpu, self.pair = torch.cuda.is_available(), pair
        if pair and torch.cuda.device_count() == 1:
            raise ConfigError("--suite two-gpu needs two GPUs, and torch finds one here; --suite gpu measures one")
        self.prefill_device, self.device = ("cuda:0", "cuda:1" if pair else "cuda:0") if self.on_gpu else ("cpu", "cpu")
        self.scale = Scale() if self.on_gpu else SMALL
        self.name = RANDOM + shape if shape in SHAPES and shape != "smollm2" else shape  # whose weights are here
        self.split = {"sm_split": sm_split} if self.on_gpu and not pair else {}
        self.joined = True  # the model's projections
        self._built: tuple[Config, Engine] | None = None  # what was asked for, and the engine
        self._as_built: dict = {}
        if not self.on_gpu and self.name.startswith(RANDOM):
            raise ConfigError(
                f"--shape {shape} needs a GPU that torch can use; --shape tiny runs the same rows anywhere"
            )

    @cached_property
    def limits(self) -> DeviceLimits:
        """The device's ceilings, measured once in this process before anything else takes its memory."""
        self.say("ceilings: copy, matrix product, pinned copies")
        return measure(torch.device(self.device), self.scale.side, self.scale.copied_bytes, self.scale.pinned_bytes)

    @cached_property
    def sustained(self) -> float:
        """FLOP/s of products that follow each other, measured once."""
        return 2 * self.scale.side**3 / sustained_s(torch.device(self.device), self.scale.side, self.scale.lasting_s)

    @cached_property
    def model(self) -> Model:
        _ = self.limits
        self.say(f"model {self.name}")
        dtype = "bfloat16" if self.on_gpu else "float32"
        return load_model(self.name, dtype=dtype, device=self.device, join_projections=self.joined)

    def join(self, joined: bool) -> None:
        """Projections joined at load, or left as they are; a model in hand of the other kind is loaded anew."""
        if joined != self.joined:
            self.joined = joined
            self.__dict__.pop("model", None)
            self.close()
            torch.compiler.reset()  # the other kind shares no compiled code, and there is a limit to how much is kept

    @property
    def sizes(self) -> Sizes:
        return Sizes.of(self.model)

    def config(self, preset: str, **changes: Any) -> Config:
        """A preset on these devices; one worker that does both is on `device`."""
        scale, alone = self.scale, PRESETS.get(preset, {}).get("prefill_workers") == 0 and preset != "two_colocated"
        fields = dict(model=self.name, dtype="bfloat16" if self.on_gpu else "float32", decode_device=self.device,
                      prefill_device=self.device if alone else self.prefill_device, block_size=scale.block,
                      chunk_tokens=scale.chunk, join_projections=self.joined)  # fmt: skip
        return Config.preset(preset, **{**fields, **changes})

    def engine(
        self, preset: str, decode: Iterable[int], prefill: int | None = None, share: float = 0.8, **changes: Any
    ) -> Engine:
        """An engine whose decode pool holds requests of these final lengths, and whose prefill pool `prefill` tokens.

        The pools take at most that share of what is free. The engine in hand is given again where it fits; another
        one is closed first.
        """
        scale, block, model = self.scale, self.scale.block, self.model
        prefill = prefill or 2 * max(scale.long, scale.context + scale.beside)
        blocks = sum(blocks_for(length + 1, block) for length in decode)
        changes = {"prefill_blocks": blocks_for(prefill, block), **changes}
        wanted = self.config(preset, decode_blocks=blocks, **changes)
        blocks += wanted.max_batch // 4 + 1  # which the controller keeps free for rows to grow into
        wanted = wanted.replace(decode_blocks=blocks)
        if self._built and self._built[0] == wanted:
            engine = self._built[1]
            engine.retune(**self._as_built)  # a row before may have dialled its link
            return engine
        self.close()
        if self.on_gpu:
            free, _ = torch.cuda.mem_get_info(torch.device(self.device))
            room = int(share * free) // (block * model.shape.token_bytes)
            if not self.pair:
                room -= known(wanted.prefill_blocks) * wanted.prefill_workers
            config = wanted.replace(decode_blocks=max(1, min(blocks, room)))
        else:
            config = wanted
        self.say(f"an engine: preset {preset}" + (f", {config.sm_split} SMs for decode" if config.sm_split else ""))
        self._built = wanted, Engine(config, model=model)
        self._as_built = {name: getattr(config, name) for name in LIVE}
        return self._built[1]

    def requests(self, lengths: Iterable[int], new: int, seed: int = 0) -> list[Request]:
        """Random prompts of these lengths that ask for `new` tokens each; all arrive at once."""
        texts = random_ids(list(lengths), self.model.vocab_size, seed)
        return [Request(ids, new, ignore_eos=True) for ids in texts]

    @property
    def resident_prompts(self) -> list[int]:
        """Of the rows that decode beside something: half of `beside` below the context, so that it is their mean."""
        return [self.scale.context - self.scale.beside // 2] * self.scale.residents

    def close(self) -> None:
        """Closes the engine in hand and gives its memory back."""
        if self._built:
            self._built[1].close()
            self._built = None
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
