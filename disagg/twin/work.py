"""FLOPs and bytes of prefill passes and decode steps, counted from a model's sizes.

The counts cover matrix products, attention, each weight once, and K/V: a time predicted from them is a floor.
Notebook: notebooks/01_baseline.ipynb.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from disagg.plan.checks import is_whole, short
from disagg.plan.errors import ConfigError


class Sizes(NamedTuple):
    """A model's sizes. Weights are counts, not bytes; norms and biases are left out."""

    layers: int
    layer_weights: int  # in the matrices of one layer
    head_weights: int  # in the output head
    width: int  # of attention's queries: heads × head dim
    token_bytes: int  # of K/V, in all layers
    itemsize: int = 4  # bytes of one number

    @classmethod
    def of(cls, model: Any) -> "Sizes":
        return cls.of_config(vars(model.config), model.shape.dtype.itemsize)

    @classmethod
    def of_config(cls, config: Mapping[str, Any], itemsize: int) -> "Sizes":
        """Sizes by a Llama-like model's config.json: q, k, v, o and three MLP matrices a layer. ConfigError."""
        if experts := next((name for name in ("num_experts", "num_local_experts") if config.get(name)), None):
            raise ConfigError(f"{experts}={config[experts]}: a mixture of experts reads other weights for each token")
        layers, hidden, inner, heads, vocab = (
            _whole(config, name)
            for name in ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
        )
        kv_heads = _whole(config, "num_key_value_heads", heads)
        head_dim = _whole(config, "head_dim", hidden // heads)
        width, kv_width = heads * head_dim, kv_heads * head_dim
        layer = 2 * hidden * (width + kv_width) + 3 * hidden * inner
        return cls(layers, layer, vocab * hidden, width, layers * 2 * kv_width * itemsize, itemsize)

    @property
    def weights(self) -> int:
        """Weights of all layers, without the output head."""
        return self.layers * self.layer_weights

    @property
    def weight_bytes(self) -> int:
        """Bytes of all matrices, with the output head."""
        return self.itemsize * (self.weights + self.head_weights)


def _whole(config: Mapping[str, Any], name: str, otherwise: int | None = None) -> int:
    value = config.get(name)
    value = otherwise if value is None else value
    if value is None or not is_whole(value) or not 1 <= value < 2**31:
        raise ConfigError(f"the model's config needs {name}, a whole number from 1 on; got {short(value)}")
    return int(value)


class PeakRates(Protocol):
    @property
    def flops_per_s(self) -> float: ...
    @property
    def bytes_per_s(self) -> float: ...


class Work(NamedTuple):
    flops: int
    nbytes: int

    @property
    def intensity(self) -> float:
        return self.flops / self.nbytes

    def seconds(self, ceilings: PeakRates) -> float:
        """The shortest possible time: the slower of computing and reading, both at their ceiling at once."""
        return max(self.flops / ceilings.flops_per_s, self.nbytes / ceilings.bytes_per_s)


def prefill_work(sizes: Sizes, tokens: int) -> Work:
    """A prompt in one pass: every token through all layers, and the last one through the output head."""
    flops = layers_flops(sizes, [(0, tokens)]) + 2 * sizes.head_weights
    return Work(flops, sizes.weight_bytes + sizes.token_bytes * tokens)


def layers_flops(sizes: Sizes, chunks: Iterable[tuple[int, int]]) -> int:
    """FLOPs of a pass of chunks [start, stop), without the output head: products and attention."""
    chunks = list(chunks)
    tokens = sum(stop - start for start, stop in chunks)
    return 2 * sizes.weights * tokens + 4 * sizes.layers * sizes.width * looked_at(chunks)


def looked_at(chunks: Iterable[tuple[int, int]]) -> int:
    """Pairs (token, token it attends to): the first token of a prompt attends to itself, the last one to all."""
    return sum((stop * (stop + 1) - start * (start + 1)) // 2 for start, stop in chunks)


def step_work(sizes: Sizes, contexts: Sequence[int]) -> Work:
    """A decode step: a row for each context, in tokens with the new one; the weights are read once for all rows."""
    flops = 2 * (sizes.weights + sizes.head_weights) * len(contexts) + 4 * sizes.layers * sizes.width * sum(contexts)
    return Work(flops, sizes.weight_bytes + sizes.token_bytes * sum(contexts))
