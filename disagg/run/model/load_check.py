"""The check at load: a few logits through the paged path against the model's own forward with its own attention.

Some architectures take a registered attention and silently compute something else (their own mask, bias or scale).
Windows, chunks and scalings that begin beyond the check's 12 tokens are made to begin within them for a second check.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from transformers import PreTrainedConfig

from disagg.plan.errors import EngineError, ModelError
from disagg.run.gpu.memory import is_shortage
from disagg.run.kv_cache import KVCache, KVShape
from disagg.run.model.batch import DecodeBatch, PrefillBatch, Segment
from disagg.run.model.text import first_line

LENGTHS, CHUNK, STEPS, BLOCK = (5, 10), 6, 2, 4
_COUNTS_TOKENS = re.compile(r"window|chunk|local_attention|floor")
_COUNTS_OTHERS = re.compile(r"layers|pattern|feed_forward|time_step|lm_head")
REACH = 4  # tokens: a window or chunk of as many is left and entered in each prompt
# Of the logits' standard deviation. Rounding in fp32 gave up to 3e-5 (SmolLM2), wrong architectures 1e-2 and more. In
# 16 bits rounding has long tails, so there the root of the mean square counts.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.05}


class PagedModel(Protocol):
    """What the check needs of model.Model, which asks for it."""

    module: torch.nn.Module
    shape: KVShape
    device: torch.device
    vocab_size: int
    layers: int
    context_limit: int

    def prefill(self, cache: KVCache, batch: PrefillBatch) -> torch.Tensor: ...
    def decode(self, cache: KVCache, batch: DecodeBatch) -> torch.Tensor: ...


def check_prompts(vocab_size: int) -> list[torch.Tensor]:
    """Token ids of two prompts, each followed by the input tokens of its decode steps."""
    generator = torch.Generator().manual_seed(20)
    return [torch.randint(0, vocab_size, (length + STEPS,), generator=generator) for length in LENGTHS]


@torch.inference_mode()
def reference_logits(module: Any) -> torch.Tensor:
    """Logits [prompt, 1 + STEPS, vocab] of the last prompt token and of each step, from whole forwards."""
    device = next(module.parameters()).device
    rows = []
    for ids in check_prompts(module.config.vocab_size):
        try:
            rows.append(module(input_ids=ids[None].to(device), use_cache=False).logits[0, -1 - STEPS :])
        except Exception as error:  # any error of its own forward is the model's
            if is_shortage(error):
                raise
            raise ModelError(f"{type(module).__name__}: its own forward fails: {first_line(error)}") from None
    return torch.stack(rows)


def paged_logits(model: PagedModel) -> tuple[torch.Tensor, list[int]]:
    """The same logits through one packed and one chunked pass and decode steps, and the layers that were handed off."""
    prompts, handed = check_prompts(model.vocab_size), []
    blocks = -(-max(map(len, prompts)) // BLOCK)
    cache = KVCache(model.shape, 2 * blocks, BLOCK, model.device)
    tables = torch.randperm(2 * blocks, generator=torch.Generator().manual_seed(1)).view(2, blocks)
    a, b = LENGTHS
    both = PrefillBatch(
        tokens=torch.cat([prompts[0][:a], prompts[1][:CHUNK]]),
        segments=[Segment(0, a, tables[0]), Segment(0, CHUNK, tables[1])],
        wants_logits=[0],
        on_layer=lambda layer, key, value: handed.append(layer),
    )
    rest = PrefillBatch(prompts[1][CHUNK:b], [Segment(CHUNK, b, tables[1])], [0])
    out = [torch.cat([model.prefill(cache, both), model.prefill(cache, rest)])]
    for step in range(STEPS):
        positions = torch.tensor([a + step, b + step])
        tokens = torch.stack([ids[place] for ids, place in zip(prompts, positions, strict=True)])
        out.append(model.decode(cache, DecodeBatch(tokens, positions, [(0, 2, tables)])))
    return torch.stack(out, dim=1), handed


@contextlib.contextmanager
def within_reach(module: torch.nn.Module, context: int) -> Iterator[dict[str, int]]:
    """While open, settings of more than REACH tokens and less than the context are REACH; yields name → its own size.

    Transformers keeps them in the configs, and as attributes of the modules.
    """
    holders = {id(holder): holder for part in module.modules() for holder in (part, *_configs(part))}
    changed = []
    for holder in holders.values():
        for name, value in vars(holder).items():
            counts_tokens = _COUNTS_TOKENS.search(name) and not _COUNTS_OTHERS.search(name)
            if counts_tokens and type(value) is int and REACH < value < context:
                changed.append((vars(holder), name, value))
    try:
        for place, name, _ in changed:
            place[name] = REACH
        yield {name: value for _, name, value in changed}
    finally:
        for place, name, value in changed:
            place[name] = value


def _configs(holder: object) -> Iterator[PreTrainedConfig]:
    """The configs that a module holds, and those in them."""
    for value in list(vars(holder).values()):
        if isinstance(value, PreTrainedConfig):
            yield value
            yield from _configs(value)


def expected_logits(module: torch.nn.Module, context: int) -> list[torch.Tensor]:
    """The untouched module's logits for the check, and for the second one if the model needs it."""
    found = [reference_logits(module)]
    with within_reach(module, context) as begins:
        return [*found, reference_logits(module)] if begins else found


def check_model(model: PagedModel, expected: list[torch.Tensor]) -> None:
    """Refuse a model whose paged logits are not its own as far as its context reaches; ModelError says where."""
    check_logits(model, expected[0])
    with within_reach(model.module, model.context_limit) as begins:
        if begins:
            try:
                check_logits(model, expected[1])
            except ModelError as error:
                where = ", ".join(f"{name} {value:,}" for name, value in sorted(begins.items()))
                raise ModelError(f"beyond {where} of config.json (probed as {REACH} tokens): {error}") from None


def check_logits(model: PagedModel, expected: torch.Tensor) -> None:
    """Refuse a model whose paged logits are not its own; ModelError says by how much."""
    name = type(model.module).__name__
    try:
        found, handed = paged_logits(model)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from None
    except EngineError:
        raise
    except Exception as error:  # a model that can't take the paged call may fail anywhere in its own code
        if is_shortage(error):
            raise
        raise ModelError(f"{name} fails in the paged call: {first_line(error)}") from None
    if handed != list(range(model.layers)):
        raise ModelError(f"{name} hands off layers {handed}; the cache needs each of {model.layers} once, in order")
    expected, found = expected.float(), found.float()
    limit = TOLERANCE[model.shape.dtype] * float(expected.std() + 1e-6)
    off = (found - expected).abs()
    worst = float(off.max()) if model.shape.dtype == torch.float32 else float(off.square().mean().sqrt())
    if not worst <= limit:
        raise ModelError(f"{name}: paged logits differ from its own forward by {worst:.2g}; the limit is {limit:.2g}")
