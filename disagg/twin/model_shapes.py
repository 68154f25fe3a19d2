"""Known models by the fields of their published config.json: enough to count what they ask for, and to make them anew.

A shape is a model without its weights, and speed depends on the shape alone.
"""

import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from disagg.plan.checks import is_whole, short
from disagg.plan.errors import ConfigError
from disagg.plan.intake import Limits
from disagg.twin.work import Sizes

RANDOM = "random-"  # before a shape's name, in Config.model
MOST_BYTES = 2**20  # of a config.json
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}

_LLAMA = dict(rms_norm_eps=1e-5, rope_theta=500_000.0, tie_word_embeddings=False)
_QWEN = dict(rms_norm_eps=1e-6, rope_theta=1_000_000.0)

#: `tiny`, a Llama for tests and lessons, which run/tiny makes in memory; EOS is one past the bytes.
TINY_EOS = 256
TINY = dict(vocab_size=257, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, tie_word_embeddings=False)  # fmt: skip

#: Longest contexts in tokens. Rotary positions of a random model are computed, not stored, so this is only a limit.
TINY_CONTEXT, SMOLLM2_CONTEXT, RANDOM_CONTEXT = 2048, 8192, 32_768
USUAL_CONTEXT = 2048  # of a config.json that says nothing

#: Name → kind of config, and its fields.
SHAPES = {
    "llama3-8b": ("llama", dict(
        vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, **_LLAMA)),
    "llama3-70b": ("llama", dict(
        vocab_size=128_256, hidden_size=8192, intermediate_size=28_672, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=8, **_LLAMA)),
    "llama3-1b": ("llama", dict(
        vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, **{**_LLAMA, "tie_word_embeddings": True})),
    "qwen3-8b": ("qwen3", dict(
        vocab_size=151_936, hidden_size=4096, intermediate_size=12_288, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=False, **_QWEN)),
    "qwen3-0.6b": ("qwen3", dict(
        vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=True, **_QWEN)),
    "smollm2": ("llama", dict(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, rms_norm_eps=1e-5, rope_theta=100_000.0, tie_word_embeddings=True)),
}  # fmt: skip


def sizes_of(model: str | Mapping, dtype: str = "bfloat16") -> Sizes:
    """Of a shape by name, "random-" in front or not, of a folder with a config.json, or of such a file's fields.
    ConfigError."""
    if isinstance(model, Mapping):
        return Sizes.of_config(model, ITEMSIZE[dtype])
    name = model.removeprefix(RANDOM) if isinstance(model, str) else model
    return Sizes.of_config(_config_of(name), ITEMSIZE[dtype])


def vocab_of(model: str) -> int:
    """Token ids that a model has; ConfigError as `sizes_of`."""
    sizes_of(model)
    return _config_of(model.removeprefix(RANDOM))["vocab_size"]


def limits_of(model: str) -> Limits:
    """What a model takes, as far as it is known without loading it; ConfigError as `sizes_of`."""
    vocab, name = vocab_of(model), os.fspath(model)
    if name == "tiny":
        return Limits(name, vocab, TINY_CONTEXT)
    if name.removeprefix(RANDOM) in SHAPES:
        return Limits(name, vocab, SMOLLM2_CONTEXT if name == "smollm2" else RANDOM_CONTEXT)
    return Limits(name, vocab, context_of(_config_of(name)))


def context_of(config: Mapping) -> int:
    """Of a config's fields. Rotary scalings that depend on the longest row of a batch are used below it only."""
    limit = config.get("max_position_embeddings")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if isinstance(rope, Mapping) and rope.get("rope_type", rope.get("type")) in ("dynamic", "longrope"):
        limit = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings", limit)
    limit = USUAL_CONTEXT if limit is None else limit
    if not is_whole(limit) or limit < 1:
        raise ConfigError(f"config.json: the context is {short(limit)} tokens; it must be a whole number, 1 or more")
    return int(limit)


def _config_of(name: str) -> Mapping:
    if name == "tiny":
        return TINY
    if name in SHAPES:
        return SHAPES[name][1]
    if isinstance(name, str) and "\0" not in name and (path := Path(name) / "config.json").is_file():
        return _fields(path)
    near = difflib.get_close_matches(name, SHAPES, n=1) if isinstance(name, str) else []
    words = f"; nearest: {near[0]!r}" if near else ""
    known = f"known: tiny, {', '.join(SHAPES)}, or a folder with a config.json"
    raise ConfigError(f"model {short(name)} has no known shape{words}; {known}")


def _fields(path: Path) -> Mapping:
    """Of a config.json. ConfigError where it is none."""
    if path.stat().st_size > MOST_BYTES:
        raise ConfigError(f"{path} has {path.stat().st_size:,} bytes; a model's config has {MOST_BYTES:,} at most")
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no config.json: {error}") from None
    if not isinstance(found, Mapping):
        raise ConfigError(f"{path} is no config.json: it holds {short(found)}")
    return found
