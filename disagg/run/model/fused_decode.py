"""A decode step whose layers are five kernels each, for models whose layers are those of Llama: norm and q/k/v product,
attention with the heads' norms and RoPE, o product and sum, norm with gate, up and their product, down product and sum.

Each weight is read once. Embedding, angles, last norm and logits stay the module's own.
"""

import re
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disagg.run.attention.kernel_trial import unfit
from disagg.run.attention.split_decode import Rotation, SplitDecode, chain
from disagg.run.kv_cache import KVCache
from disagg.run.model.projections import Joined, JoinedPart

LEAST_PROGRAMS = 100  # of a kernel, so that most of a GPU's processors read weights
AHEAD_BYTES = 16 << 20  # of a kernel's weights, brought into the L2 cache while the kernel before it runs
CHAIN_CAPABILITY = (9, 0)  # programmatic dependent launch begins with Hopper
_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_HEADS = {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"}
_ODD = re.compile("multiplier|softcap|sinks|logit_?s?_?scal|residual_scale|no_rope")  # in the names of a config


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

    def options(self, n: int, k: int, chained: bool) -> dict[str, Any]:
        """The kernel's sizes and launch options for a weight [n, k]."""
        most = min(k // self.split, AHEAD_BYTES // (2 * n))
        sizes = dict(K=k, ROWS=self.rows, COLS=self.cols, INNER=self.inner, AHEAD=(1 << most.bit_length()) >> 1)
        return dict(**sizes, **chain(chained), num_warps=self.warps, num_stages=self.stages)


def tile_of(rows: int, n: int, k: int, sums: bool) -> Tile:
    """A good tile for a weight [n, k]; `sums`: the kernel can split k."""
    tall = 16 if rows <= 16 else 32 if rows <= 32 else 64
    cols = next((cols for cols in (64, 32) if n % cols == 0 and n // cols >= LEAST_PROGRAMS), 16)
    split = next((split for split in (1, 2, 4) if n // cols * split >= LEAST_PROGRAMS), 4) if sums else 1
    split = min(split, max(1, power_in(k) // 128))
    inner = min(256 if tall <= 32 else 128, power_in(k // split))
    return Tile(tall, cols, inner, 4, 4 if tall * inner <= 4096 else 3, split)


def power_in(count: int) -> int:
    """The largest power of two that divides `count`."""
    return count & -count


class Layer(NamedTuple):
    """Weights of one layer; norms in fp32."""

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
        first, second, query, key = [norm.weight.detach().float() for norm in norms + heads] + [None] * (2 - len(heads))
        eps = [norm.variance_epsilon for norm in norms + heads]
        if len(set(eps[2:])) > 1:
            return None
        weights = others[0].weight, second, gate_up.weight, others[1].weight
        return cls(first, qkv, query, key, *weights, (eps[0], eps[-1], eps[1]), attention.scaling)


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
    """The step of one model; `chained` kernels start while the kernel before them runs."""

    def __init__(self, module: Any, layers: list[Layer], chained: bool) -> None:
        self._module, self._layers, self.chained = module, layers, chained

    @classmethod
    def of(cls, model: Any) -> "FusedDecode | None":
        """None where the model is not made of such layers, or in float16, whose range a norm's late scale could leave.
        Whether it gives the module's logits a trial shows: fused_trial.py."""
        module, shape, files = model.module, model.shape, model.config.to_dict()
        core: Any = getattr(module, "model", None)
        names = {name for name, _ in core.named_children()} if core is not None else set()
        odd = any(_ODD.search(name) and value is not None for name, value in files.items())
        if odd or shape.dtype == torch.float16 or unfit(replace(shape, dtype=torch.bfloat16), model.config):
            return None
        if names != {"embed_tokens", "layers", "norm", "rotary_emb"} or type(core.embed_tokens) is not nn.Embedding:
            return None
        frequencies = getattr(core.rotary_emb, "inv_freq", None)
        if frequencies is None or 2 * frequencies.numel() != shape.head_dim or not hasattr(module, "lm_head"):
            return None
        layers = [Layer.of(layer) for layer in core.layers]
        kept = [layer for layer in layers if layer is not None]
        return cls(module, kept, can_chain(model.device)) if len(kept) == len(layers) == shape.layers else None

    @torch.inference_mode()
    def __call__(self, cache: KVCache, table: Tensor, lengths: Tensor, tokens: Tensor) -> Tensor:
        """tokens [rows], after `lengths` [rows] int32 others that `table` [rows, blocks] int32 finds -> logits [rows,
        vocab]. A step's graph captures it."""
        core, rows, shape = self._module.model, len(tokens), cache.shape
        stream = core.embed_tokens(tokens)
        attend, adds = SplitDecode(cache, table, lengths), Adds(stream, self.chained)
        width = self._layers[0].gate_up.shape[0] // 2
        qkv, inner = (stream.new_empty(rows, n) for n in (self._layers[0].qkv.weight.shape[0], width))
        # Last, for a chained launch needs a kernel before it, and zeros may be filled by a memset.
        cos, sin = (x[0].contiguous() for x in core.rotary_emb(stream[None], lengths.long()[None]))
        for index, layer in enumerate(self._layers):
            norm_project(stream, layer.norm, layer.qkv, layer.eps[0], qkv, self.chained)
            heads = qkv.view(rows, -1, shape.head_dim)
            query, key, value = heads.tensor_split([-2 * shape.kv_heads, -shape.kv_heads], dim=1)
            rotation = Rotation(cos, sin, layer.query_norm, layer.key_norm, layer.eps[1], self.chained)
            mixed = attend(query, key, value, *cache.layer(index), layer.scale, rotation)
            adds(mixed.flatten(1), layer.o)
            norm_gate_up(stream, layer.second_norm, layer.gate_up, layer.eps[2], inner, self.chained)
            adds(inner, layer.down)
        return self._module.lm_head(core.norm(stream))


def can_chain(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= CHAIN_CAPABILITY


def norm_project(
    x: Tensor, norm: Tensor, linear: nn.Linear, eps: float, out: Tensor, chained: bool, tile: Tile | None = None
) -> None:
    """out [rows, n] = the product of the norm of x [rows, hidden]."""
    from disagg.run.model import decode_kernels  # needs triton

    (n, k), rows = linear.weight.shape, len(x)
    tile = tile or tile_of(rows, n, k, sums=False)
    given = x, norm, linear.weight, linear.bias, out, rows, eps
    biased = linear.bias is not None
    decode_kernels.norm_project[tile.grid(rows, n)](*given, N=n, BIASED=biased, **tile.options(n, k, chained))


def norm_gate_up(
    x: Tensor, norm: Tensor, weight: Tensor, eps: float, out: Tensor, chained: bool, tile: Tile | None = None
) -> None:
    """out [rows, width] = silu(gate) · up of the norm of x [rows, hidden], weight [2 · width, hidden]."""
    from disagg.run.model import decode_kernels  # needs triton

    (n, k), rows = (weight.shape[0] // 2, weight.shape[1]), len(x)
    tile = tile or tile_of(rows, n, k, sums=False)
    given = x, norm, weight, out, rows, eps
    decode_kernels.norm_gate_up[tile.grid(rows, n)](*given, N=n, **tile.options(n, k, chained))


class Adds:
    """Adds products to a stream [rows, hidden] in place, with scratch for those whose sums are split."""

    def __init__(self, stream: Tensor, chained: bool) -> None:
        self._stream, self._chained = stream, chained
        self._finished = torch.zeros(stream.numel() // 16 + stream.shape[1], dtype=torch.int32, device=stream.device)
        self._parts: dict[int, Tensor] = {}

    def __call__(self, x: Tensor, weight: Tensor, tile: Tile | None = None) -> None:
        """x [rows, k] and weight [hidden, k]."""
        from disagg.run.model import decode_kernels  # needs triton

        (n, k), rows = weight.shape, len(x)
        tile = tile or tile_of(rows, n, k, sums=True)
        if tile.split not in self._parts:
            self._parts[tile.split] = self._stream.new_empty(tile.split, rows, n, dtype=torch.float32)
        given = x, weight, self._stream, self._parts[tile.split], self._finished, rows
        options = tile.options(n, k, self._chained)
        decode_kernels.project_add[tile.grid(rows, n)](*given, N=n, SPLIT=tile.split, **options)
