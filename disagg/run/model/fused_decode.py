"""A decode step of seven kernels a layer, for models whose layers are those of Llama: norm; q/k/v; attention with the
heads' norms, RoPE and the new K/V; o with its sum; norm; gate, up and their product; down with its sum.

Products are the library's or ours (`Own`); logits are the module's own, and angles where a kernel does not give them.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disagg.run.attention.kernel_trial import unfit
from disagg.run.attention.split_decode import Rotation, SplitDecode, power_of_two
from disagg.run.kv_cache import KVCache
from disagg.run.model.projections import Joined, JoinedPart

LEAST_PROGRAMS = 100  # of a kernel, so that most of a GPU's processors read weights
GATED = 1024  # columns of a program that multiplies gate and up
_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_HEADS = {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"}
_STEADY = {"default", "linear", "llama3", "yarn"}  # kinds of RoPE whose frequencies don't change with the context
#: In the names of a config, of its parts too.
_ODD = re.compile("multiplier|softcap|sinks|logit_?s?_?scal|residual_scale|no_rope|llama_4|attn_temp|attn_scale")


class Tile(NamedTuple):
    """How a product [rows, K] · [N, K]ᵀ is cut into programs."""

    rows: int
    cols: int  # of N
    inner: int  # of K, at a time
    warps: int
    stages: int  # tiles loaded ahead
    split: int = 1  # programs that share a tile's K

    def grid(self, rows: int, n: int) -> tuple[int, int, int]:
        return -(-rows // self.rows), n // self.cols, self.split

    def options(self, k: int) -> dict[str, Any]:
        """The kernel's sizes and launch options for a weight [n, k]."""
        sizes = dict(K=k, ROWS=self.rows, COLS=self.cols, INNER=self.inner)
        return dict(**sizes, num_warps=self.warps, num_stages=self.stages)


def tile_of(rows: int, n: int, k: int, sums: bool) -> Tile:
    """A good tile for a weight [n, k], as measured on an H200; `sums`: the kernel can split k."""
    tall = 16 if rows <= 16 else 32 if rows <= 32 else 64
    cols = 32 if n % 32 == 0 else 16
    split = next((split for split in (1, 2, 4) if n // cols * split >= LEAST_PROGRAMS), 4) if sums else 1
    split = min(split, max(1, power_in(k) // 128))
    most = 256 if sums and split == 1 and tall <= 32 else 128
    return Tile(tall, cols, min(most, power_in(k // split)), 4, 4 if sums else 5, split)


def power_in(count: int) -> int:
    """The largest power of two that divides `count`."""
    return count & -count


class Own(NamedTuple):
    """Which products a kernel of ours computes, together with what follows it, in place of the library's."""

    qkv: bool = False
    o: bool = False
    gate_up: bool = False
    down: bool = False


EVERY = Own(*[True] * len(Own._fields))


class Layer(NamedTuple):
    """Weights of one layer."""

    norm: Tensor  # [hidden]
    qkv: nn.Linear  # [(heads + 2 kv_heads) · head_dim, hidden]
    query_norm: Tensor | None  # [head_dim]
    key_norm: Tensor | None
    o: Tensor  # [hidden, heads · head_dim]
    second_norm: Tensor  # [hidden]
    gate_up: Tensor  # [2 · width, hidden]
    down: Tensor  # [hidden, width]
    eps: tuple[float, float, float]  # of the first norm, the heads' and the second
    scale: float  # of scores

    @classmethod
    def of(cls, layer: Any) -> "Layer | None":
        """None where the layer computes something else, as far as its parts show."""
        if {name for name, _ in layer.named_children()} != _PARTS:
            return None
        attention, mlp, norms = layer.self_attn, layer.mlp, [layer.input_layernorm, layer.post_attention_layernorm]
        found = {name for name, _ in attention.named_children()}
        heads = [attention.q_norm, attention.k_norm] if "q_norm" in found else []
        qkv, gate_up = joined(attention, "q_proj", "k_proj", "v_proj"), joined(mlp, "gate_proj", "up_proj")
        others = [attention.o_proj, getattr(mlp, "down_proj", None)] if "o_proj" in found else []
        if found not in (_HEADS, _HEADS - {"q_norm", "k_norm"}) or qkv is None or gate_up is None:
            return None
        if not all(map(is_plain_norm, norms + heads)) or not all(map(is_plain_linear, others)):
            return None
        if gate_up.bias is not None or not is_silu(getattr(mlp, "act_fn", None), others[0].weight):
            return None
        if getattr(attention, "sliding_window", None) or not getattr(attention, "use_rope", True):
            return None
        if {norm.weight.numel() for norm in heads} - {attention.head_dim}:
            return None
        first, second, query, key = [norm.weight.detach() for norm in norms + heads] + [None] * (2 - len(heads))
        eps = [norm.variance_epsilon for norm in norms + heads]
        if len(set(eps[2:])) > 1:
            return None
        weights = others[0].weight, second, gate_up.weight, others[1].weight
        return cls(first, qkv, query, key, *weights, (eps[0], eps[-1], eps[1]), attention.scaling)


def named(fields: dict[str, Any]) -> Iterator[str]:
    """Names of what is set in a config, inside its parts too."""
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from named({str(key): part for key, part in value.items()})
        if value is not None:
            yield name


def joined(parent: Any, *names: str) -> nn.Linear | None:
    """The one product behind these projections, or None."""
    parts: list[Any] = [getattr(parent, name, None) for name in names]
    if not all(isinstance(part, JoinedPart) for part in parts):
        return None
    one: Joined = parts[0].joined
    return one.linear if type(one.linear) is nn.Linear and len(one.sizes) == len(names) else None


def is_plain_linear(linear: Any) -> bool:
    return type(linear) is nn.Linear and linear.bias is None and min(map(power_in, linear.weight.shape)) >= 16


@torch.inference_mode()
def is_plain_norm(norm: Any) -> bool:
    """Whether it is RMSNorm times its weight; Gemma's multiplies by 1 + weight."""
    weight, eps = getattr(norm, "weight", None), getattr(norm, "variance_epsilon", None)
    if weight is None or eps is None or weight.dim() != 1 or power_in(len(weight)) < 16:
        return False
    x = torch.linspace(-1, 2, 3 * len(weight), device=weight.device).view(3, -1).to(weight.dtype)
    return torch.allclose(norm(x).float(), F.rms_norm(x.float(), weight.shape, weight.float(), eps), 0.02, 0.02)


@torch.inference_mode()
def is_silu(function: Any, like: Tensor) -> bool:
    x = torch.linspace(-4, 4, 64, device=like.device).to(like.dtype)
    return function is not None and torch.allclose(function(x).float(), F.silu(x).float(), 0.02, 0.02)


class FusedDecode:
    """The step of one model."""

    def __init__(self, module: Any, layers: list[Layer], frequencies: Tensor | None) -> None:
        """`frequencies` [head_dim / 2] of angles that a kernel gives; None: the module gives them."""
        self._module, self._layers, self._frequencies = module, layers, frequencies

    @classmethod
    def of(cls, model: Any) -> "FusedDecode | None":
        """None where the model is not made of such layers, or in float16, whose range a norm's late scale could leave.
        Whether it gives the module's logits a trial shows: fused_trial.py."""
        module, shape = model.module, model.shape
        core: Any = getattr(module, "model", None)
        names = {name for name, _ in core.named_children()} if core is not None else set()
        odd = any(_ODD.search(name) for name in named(model.config.to_dict()))
        if odd or shape.dtype == torch.float16 or unfit(replace(shape, dtype=torch.bfloat16), model.config):
            return None
        if names != {"embed_tokens", "layers", "norm", "rotary_emb"} or type(core.embed_tokens) is not nn.Embedding:
            return None
        frequencies = getattr(core.rotary_emb, "inv_freq", None)
        if frequencies is None or 2 * frequencies.numel() != shape.head_dim or not hasattr(module, "lm_head"):
            return None
        layers = [Layer.of(layer) for layer in core.layers]
        kept = [layer for layer in layers if layer is not None]
        if not len(kept) == len(layers) == shape.layers or not is_plain_norm(core.norm):
            return None
        return cls(module, kept, frequencies if are_plain_angles(core.rotary_emb, model.context_limit) else None)

    @torch.inference_mode()
    def __call__(self, cache: KVCache, table: Tensor, lengths: Tensor, tokens: Tensor, own: Own) -> Tensor:
        """tokens [rows], after `lengths` [rows] int32 others that `table` [rows, blocks] int32 finds -> logits [rows,
        vocab]. A step's graph captures it."""
        core, shape = self._module.model, cache.shape
        stream = core.embed_tokens.weight[tokens]
        attend, products = SplitDecode(cache, table, lengths), Products()
        if self._frequencies is None:
            cos, sin = (x[0].contiguous() for x in core.rotary_emb(stream[None], lengths.long()[None]))
        else:
            cos, sin = angles(lengths, self._frequencies, core.rotary_emb.attention_scaling, stream.dtype)
        for index, layer in enumerate(self._layers):
            joined = products.give(norm_row(stream, layer.norm, layer.eps[0]), layer.qkv, own.qkv)
            heads = joined.view(len(tokens), -1, shape.head_dim)
            query, key, value = heads.tensor_split([-2 * shape.kv_heads, -shape.kv_heads], dim=1)
            rotation = Rotation(cos, sin, layer.query_norm, layer.key_norm, layer.eps[1])
            mixed = attend(query, key, value, *cache.layer(index), layer.scale, rotation).flatten(1)
            products.add(stream, mixed, layer.o, own.o)
            gated = gate_up(norm_row(stream, layer.second_norm, layer.eps[2]), layer.gate_up, own.gate_up)
            products.add(stream, gated, layer.down, own.down)
        return self._module.lm_head(norm_row(stream, core.norm.weight, core.norm.variance_epsilon))


def angles(lengths: Tensor, frequencies: Tensor, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """RoPE's cos and sin [rows, head_dim] of the positions `lengths` [rows]."""
    from disagg.run.model import decode_kernels  # needs triton

    half = frequencies.numel()
    cos, sin = (torch.empty(len(lengths), 2 * half, dtype=dtype, device=lengths.device) for _ in range(2))
    given = lengths, frequencies, cos, sin, scale
    decode_kernels.turn[(len(lengths),)](*given, HALF=half, HALF_PAD=power_of_two(half), num_warps=1)
    return cos, sin


@torch.inference_mode()
def are_plain_angles(rotary: Any, limit: int) -> bool:
    """Whether they are positions times frequencies that stay what they are, near and far."""
    if getattr(rotary, "rope_type", None) not in _STEADY or not hasattr(rotary, "attention_scaling"):
        return False
    frequencies = rotary.inv_freq
    places = torch.tensor([0, 1, limit // 3, limit - 1], dtype=torch.int32, device=frequencies.device)
    like = torch.empty(1, 4, 1, device=frequencies.device)
    found = angles(places, frequencies, rotary.attention_scaling, like.dtype)
    return all(
        torch.allclose(a, b[0], atol=1e-3) for a, b in zip(found, rotary(like, places.long()[None]), strict=True)
    )


def norm_row(x: Tensor, norm: Tensor, eps: float) -> Tensor:
    from disagg.run.model import decode_kernels  # needs triton

    out, width = torch.empty_like(x), x.shape[1]
    decode_kernels.norm_row[(len(x),)](x, norm, out, eps, K=width, K_PAD=power_of_two(width), num_warps=8)
    return out


def gate_up(x: Tensor, weight: Tensor, own: bool, tile: Tile | None = None) -> Tensor:
    """silu(gate) · up of x [rows, k] -> [rows, n], weight [2n, k]; `own`: in one kernel."""
    from disagg.run.model import decode_kernels  # needs triton

    (n, k), rows = (weight.shape[0] // 2, weight.shape[1]), len(x)
    out = x.new_empty(rows, n)
    if own:
        tile = tile or tile_of(rows, n, k, sums=False)
        decode_kernels.gate_up[tile.grid(rows, n)](x, weight, out, rows, N=n, **tile.options(k))
    else:
        decode_kernels.gate[(rows, -(-n // GATED))](F.linear(x, weight), out, N=n, COLS=GATED)
    return out


class Products:
    """Products by the library or by a kernel of ours (`own`), with scratch for those whose sums are split."""

    def __init__(self) -> None:
        self._scratch: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # by parts and columns

    def give(self, x: Tensor, linear: nn.Linear, own: bool, tile: Tile | None = None) -> Tensor:
        """x [rows, k] -> [rows, n]."""
        if not own or linear.bias is not None:
            return linear(x)
        out = x.new_empty(len(x), linear.out_features)
        self._launch(out, x, linear.weight, tile, ADD=False)
        return out

    def add(self, stream: Tensor, x: Tensor, weight: Tensor, own: bool, tile: Tile | None = None) -> None:
        """stream [rows, n] += x [rows, k] · weight [n, k]ᵀ."""
        if own:
            self._launch(stream, x, weight, tile, ADD=True)
        else:
            stream.addmm_(x, weight.t())

    def _launch(self, out: Tensor, x: Tensor, weight: Tensor, tile: Tile | None, **how: bool) -> None:
        from disagg.run.model import decode_kernels  # needs triton

        (n, k), rows = weight.shape, len(x)
        tile = tile or tile_of(rows, n, k, sums=True)
        if (tile.split, n) not in self._scratch:
            parts, tiles = x.new_empty(tile.split, rows, n, dtype=torch.float32), rows * n // 16 + n
            self._scratch[tile.split, n] = parts, torch.zeros(tiles, dtype=torch.int32, device=x.device)
        given = x, weight, out, *self._scratch[tile.split, n], rows
        decode_kernels.project[tile.grid(rows, n)](*given, N=n, SPLIT=tile.split, **how, **tile.options(k))
