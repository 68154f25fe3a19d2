"""The model: Hugging Face's own module, fed with packed prefill passes and decode steps over a paged KV cache.

Loading: check the files → load → take a few logits of the untouched module → switch its attention to ours, join and
pack its projections, shorten its norms → compare its logits on the paged path (load_check.py) → return or refuse it.
"""

import copy
import inspect
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from disagg.imported_later import package_error
from disagg.plan.checks import is_whole, short
from disagg.plan.errors import ConfigError, ModelError
from disagg.run.attention.choice import choose
from disagg.run.attention.gathered import DecodePlan, PrefillPlan, Workspace
from disagg.run.attention.interface import NAME, Plan, announced, number_layers
from disagg.run.gpu.device import finish
from disagg.run.gpu.memory import room_for
from disagg.run.kv_cache import KVCache, KVShape
from disagg.run.model.batch import DecodeBatch, PrefillBatch
from disagg.run.model.load_check import check_model, expected_logits
from disagg.run.model.norms import shorten_norms
from disagg.run.model.projections import join_projections as join
from disagg.run.model.projections import pack_linears
from disagg.run.model.random_models import RANDOM
from disagg.run.model.source import WEIGHTS_ADVICE, Made, Progress, Source
from disagg.run.model.text import Text, first_line

if TYPE_CHECKING:
    from disagg.run.attention.paged import PagedKernel

MOST_CODES = 64  # of a class of layers
PASS_STEP = 64  # compiled passes are padded to a multiple: products like it, and few sizes are met
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Model:
    """One worker thread's model. `shape` is what a token stores; ids and batches are CPU tensors."""

    def __init__(self, module: Any, source: Source, text: Text, attention: str) -> None:
        self.source, self.text, self.attention = source, text, attention
        self.module: torch.nn.Module = module
        self.name, self.device, self.config = source.name, source.device, module.config
        self.shape = kv_shape(self.config, source.dtype)
        self.layers, self.vocab_size = self.shape.layers, self.config.vocab_size
        self.context_limit, self.eos_ids = context_limit(self.config), eos_ids(module, text)
        self.compiled = False
        self._workspace = Workspace(attention)
        self._keeps_logits = "logits_to_keep" in inspect.signature(type(module).forward).parameters

    def compile(self, **how: Any) -> None:
        """Compile one layer for all, after `keep_many_codes` on the same thread; the first size run should be large,
        for kernels are tuned on it."""
        lists = (part for part in self.module.modules() if isinstance(part, torch.nn.ModuleList))
        for layer in next(part for part in lists if len(part) == self.layers):
            layer.compile(fullgraph=True, dynamic=True, **how)
        self.compiled = True

    def prefill(self, cache: KVCache, batch: PrefillBatch, kernel: "PagedKernel | None" = None) -> torch.Tensor:
        """Run one packed pass; logits [len(batch.wants_logits), vocab]."""
        plan: Plan
        if kernel is None:
            plan = PrefillPlan(batch, cache, self._workspace)
        else:
            from disagg.run.attention.paged import PagedPrefill

            plan = PagedPrefill(batch, cache, kernel)
        ids, places, wanted = (torch.as_tensor(x) for x in (batch.tokens, batch.places, batch.last_rows))
        wanted = wanted.long()  # where there are none
        if self.compiled:
            ids, places = (F.pad(x, (0, -len(x) % PASS_STEP)) for x in (ids, places))
        return self.logits(plan, *(x.to(self.device, non_blocking=True) for x in (ids, places, wanted)))

    def logits(self, plan: Plan, ids: torch.Tensor, positions: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """The module over a prefill plan: logits of the rows `wanted`; all three [T], [T] and [n] on its device."""
        if self._keeps_logits:
            return self.call(plan, ids, positions, logits_to_keep=wanted)
        return self.call(plan, ids, positions)[wanted]  # it computes the logits of all rows

    def decode(self, cache: KVCache, batch: DecodeBatch) -> torch.Tensor:
        """Run one step over gathered slots; logits [B, vocab]."""
        ids, places = (x.to(self.device, non_blocking=True) for x in (batch.tokens, batch.positions))
        return self.call(DecodePlan(batch, cache, self._workspace), ids, places)

    @torch.inference_mode()
    def call(self, plan: Plan, ids: torch.Tensor, positions: torch.Tensor, **options: Any) -> torch.Tensor:
        """The module over a plan: ids and positions [T] on its device -> logits [T or those kept, vocab]."""
        with announced(plan):
            out = self.module(input_ids=ids[None], position_ids=positions[None], plan=plan, use_cache=False, **options)
        return out.logits[0]

    def encode(self, text: str, chat: bool = True) -> list[int]:
        """Token ids of a prompt; with chat, SmolLM2 gets it as the user's turn."""
        return self.text.encode(text, chat)

    def decode_text(self, ids: list[int]) -> str:
        """Text of token ids, up to the first that can't be decoded."""
        return self.text.decode(ids)

    def replica(self, device: torch.device | str | None = None) -> "Model":
        """Another module tree with its own buffers, for a second worker thread: over the same weights, or over a copy
        of them on another device; EngineError if it has no room for them."""
        source = self.source if device is None else source_of(self.name, self.source.dtype, device)
        weights = {id(parameter): parameter for parameter in self.module.parameters()}
        if source.device != self.device:
            with room_for(f"the weights of {self.name}", source.device, WEIGHTS_ADVICE):
                weights = {key: torch.nn.Parameter(w.to(source.device), False) for key, w in weights.items()}
                finish(source.device)  # the worker's stream does not wait for these copies
        module = copy.deepcopy(self.module, weights).to(source.device)
        return Model(module, source, self.text, self.attention)

    def reference(self) -> torch.nn.Module:
        """The untouched Hugging Face module with its own attention and weights, to measure parity against."""
        return self.source.module()


def load_model(
    name: str,
    *,
    dtype: str = "float32",
    attention: str = "auto",
    join_projections: bool = True,
    device: torch.device | str = "cpu",
    progress: Progress = None,
) -> Model:
    """Load "smollm2", "tiny", "random-<shape>" or a folder in Hugging Face format; ModelError if it is not right.

    A ModelWarning names what a folder asks for and does not get: a chat template, a repetition penalty.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    source, kind = source_of(str(name), DTYPES[dtype], device), choose(attention, device)
    source.prepare(progress)
    with room_for(f"the weights of {source.name}", source.device, WEIGHTS_ADVICE):
        try:
            module = source.module()
        except ImportError as error:
            raise package_error(error) from error
        text = source.text()
        check_architecture(module)
        expected = expected_logits(module, context_limit(module.config))
        config: Any = module.config
        config._attn_implementation = NAME
        number_layers(module)
        if join_projections:
            join(module)
            if source.device.type == "cpu":
                pack_linears(module)
                shorten_norms(module)
        model = Model(module, source, text, kind)
        check_model(model, expected)
    source.warn(module, text)
    return model


def source_of(name: str, dtype: torch.dtype, device: torch.device | str) -> Source:
    """By name: "tiny", "random-<shape>", "smollm2", or the path of a folder."""
    if name == "tiny" or name.startswith(RANDOM):
        return Made(name, dtype, device)
    from disagg.run.model.folder import Folder

    return Folder(name, dtype, device)


def keep_many_codes() -> None:
    """For this thread: torch compiles a class of layers for each model, type and device that it meets in the process,
    and would refuse at the ninth."""
    torch._dynamo.config.recompile_limit = MOST_CODES


def check_architecture(module: Any) -> None:
    """Refuse by name what paged attention can't carry, before the check of its logits."""
    name = type(module).__name__
    if getattr(module, "_is_stateful", False):
        raise ModelError(f"{name} keeps a recurrent state instead of K/V per token; a paged KV cache can't hold that")
    if not module.is_backend_compatible():
        raise ModelError(f"{name} does not call attention through AttentionInterface, so the paged one would never run")
    kv_shape(module.config, torch.float32)


def kv_shape(config: Any, dtype: torch.dtype) -> KVShape:
    """What the config declares that a token stores in each layer."""
    try:
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        return KVShape(config.num_hidden_layers, int(kv_heads), int(head_dim), dtype)
    except (AttributeError, TypeError, ValueError, ArithmeticError) as error:
        raise ModelError(f"{config.model_type}: the config declares no single KV shape ({first_line(error)})") from None


def context_limit(config: Any) -> int:
    """Longest context in tokens. Rotary scalings that depend on the longest row of a batch are used below it only."""
    limit = getattr(config, "max_position_embeddings", None)
    limits = [2048 if limit is None else limit]
    rope = getattr(config, "rope_parameters", None) or {}
    for part in (rope, *rope.values()):  # one for all layers, or one for each type of layer
        if isinstance(part, dict) and part.get("rope_type") in ("dynamic", "longrope"):
            own = getattr(config, "original_max_position_embeddings", None)
            limits.append(part.get("original_max_position_embeddings") or own or limits[0])
    for limit in limits:
        if not is_whole(limit) or limit < 1:
            raise ModelError(f"config.json: the context is {short(limit)} tokens; it must be a whole number, 1 or more")
    return int(min(limits))


def eos_ids(module: torch.nn.Module, text: Text) -> tuple[int, ...]:
    """Every id that ends an answer, from the generation config, the config and the tokenizer."""
    found = set(text.eos_ids)
    for config in (module.config, getattr(module, "generation_config", None)):
        ids = getattr(config, "eos_token_id", None)
        found.update(ids if isinstance(ids, list | tuple) else () if ids is None else (ids,))
    if not all(map(is_whole, found)):
        raise ModelError(f"eos_token_id holds {short(found)}; token ids are whole numbers")
    return tuple(sorted(found))
