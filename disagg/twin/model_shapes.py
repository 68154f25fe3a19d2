"""Known models by the fields of their published config.json: enough to count their work and to make random models.

A shape is a model without its weights; speed depends on the shape alone.
"""

import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from disagg.plan.checks import is_whole, short
from disagg.plan.errors import ConfigError
from disagg.plan.intake import Limits
from disagg.twin.work import Sizes

RANDOM = "random-"  # prefix of a shape's name in Config.model
MOST_BYTES = 2**20  # of a config.json
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}


def _shape(vocab: int, hidden: int, inner: int, layers: int, heads: int, kv_heads: int, **more: Any) -> dict[str, Any]:
    """The fields of a config.json; `inner` is the MLP's width."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes = zip(names, (vocab, hidden, inner, layers, heads), strict=True)
    return {**dict(sizes), "num_key_value_heads": kv_heads, "tie_word_embeddings": False, **more}


_LLAMA = {"rms_norm_eps": 1e-5, "rope_theta": 500_000.0}
_SMOLLM = {"rms_norm_eps": 1e-5, "rope_theta": 100_000.0, "tie_word_embeddings": True}
_QWEN = {"head_dim": 128, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0}

#: `tiny`, a Llama for tests and lessons, which run/model/random_models makes in memory; EOS is one past the bytes.
TINY_EOS = 256
TINY = _shape(257, 64, 128, 4, 4, 2)

#: Longest contexts in tokens. Rotary positions of a random model are computed, not stored, so this is only a limit.
TINY_CONTEXT, SMOLLM2_CONTEXT, RANDOM_CONTEXT = 2048, 8192, 32_768
USUAL_CONTEXT = 2048  # of a config.json without one

#: Name → kind of config, and its fields.
SHAPES = {
    "llama3-8b": ("llama", _shape(128_256, 4096, 14_336, 32, 32, 8, **_LLAMA)),
    "llama3-70b": ("llama", _shape(128_256, 8192, 28_672, 80, 64, 8, **_LLAMA)),
    "llama3-1b": ("llama", _shape(128_256, 2048, 8192, 16, 32, 8, head_dim=64, tie_word_embeddings=True, **_LLAMA)),
    "qwen3-8b": ("qwen3", _shape(151_936, 4096, 12_288, 36, 32, 8, **_QWEN)),
    "qwen3-0.6b": ("qwen3", _shape(151_936, 1024, 3072, 28, 16, 8, tie_word_embeddings=True, **_QWEN)),
    "smollm2": ("llama", _shape(49_152, 576, 1536, 30, 9, 3, **_SMOLLM)),
}


def sizes_of(model: str | Mapping[str, Any], dtype: str = "bfloat16") -> Sizes:
    """Sizes by a shape's name, with or without "random-", by a folder with a config.json, or by that file's fields.
    ConfigError."""
    name = model.removeprefix(RANDOM) if isinstance(model, str) else model
    return Sizes.of_config(name if isinstance(name, Mapping) else _config_of(name), ITEMSIZE[dtype])


def vocab_of(model: str) -> int:
    """The number of a model's token ids; ConfigError as `sizes_of`."""
    sizes_of(model)
    return int(_config_of(model.removeprefix(RANDOM))["vocab_size"])


def limits_of(model: str) -> Limits:
    """A model's limits, as far as they are known without loading it; ConfigError as `sizes_of`."""
    vocab, name = vocab_of(model), os.fspath(model)
    if name == "tiny":
        return Limits(name, vocab, TINY_CONTEXT)
    if name.removeprefix(RANDOM) in SHAPES:
        return Limits(name, vocab, SMOLLM2_CONTEXT if name == "smollm2" else RANDOM_CONTEXT)
    return Limits(name, vocab, context_of(_config_of(name)))


def context_of(config: Mapping[str, Any]) -> int:
    """The longest context by a config's fields, without rotary scalings that depend on a batch's longest row."""
    limit = config.get("max_position_embeddings")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if isinstance(rope, Mapping) and rope.get("rope_type", rope.get("type")) in ("dynamic", "longrope"):
        limit = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings", limit)
    limit = USUAL_CONTEXT if limit is None else limit
    if not is_whole(limit) or limit < 1:
        raise ConfigError(f"config.json: the context is {short(limit)} tokens; it must be a whole number, 1 or more")
    return int(limit)


def _config_of(name: str) -> Mapping[str, Any]:
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


def _fields(path: Path) -> Mapping[str, Any]:
    """The fields of a config.json. ConfigError if it is none."""
    if path.stat().st_size > MOST_BYTES:
        raise ConfigError(f"{path} has {path.stat().st_size:,} bytes; a model's config has {MOST_BYTES:,} at most")
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no config.json: {error}") from None
    if not isinstance(found, Mapping):
        raise ConfigError(f"{path} is no config.json: it holds {short(found)}")
    return found
