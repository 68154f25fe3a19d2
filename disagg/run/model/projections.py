"""Fewer and better matrix products: q/k/v joined into one, gate/up into one, weights packed for oneDNN on the CPU.

Hugging Face's modules stay as they are: a joined product hides behind the names q_proj, k_proj and v_proj.
The packed weight is the only copy (the embedding aside, which a tied output head shared), and replicas share it; but
where a product of one row is clearly faster over plain columns, and memory allows, those are kept as well.
"""

import time
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import nn

from disagg.run.gpu.memory import free_bytes

PATTERNS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
PACK_ROWS = 16  # oneDNN packs for a number of rows: 16 was best or equal for 1, 4, 16, 128 and 256 rows

#: Rows are padded to a multiple of `step` up to `rows`. oneDNN compiles, and keeps, half a megabyte of code for every
#: number of rows it meets, so there must be few; fewer than four rows take its slower path (a step of SmolLM2 for one
#: row took 47 ms padded to four, 64 ms alone).
ROW_STEPS = ((32, 4), (256, 16))
LAST_STEP = 64

LEAST_BYTES = 16 << 20  # of a weight whose products are timed: more than a core's caches hold
COLUMNS_GAIN = 0.8  # of the packed product's time that columns may take to be worth a second copy
COLUMNS_SHARE = 0.125  # of the free memory that this copy may take


class Joined(nn.Module):
    """One product for several projections of the same input, cut into parts by their siblings' sizes.

    It keeps the parts from the first sibling's call to the last one's, so each worker thread needs its own replica.
    """

    def __init__(self, linears: list[nn.Linear]) -> None:
        super().__init__()
        self.sizes = [linear.out_features for linear in linears]
        self.linear = join_linears(linears)
        # input and parts, in a list, because setting an attribute of an nn.Module is slow
        self._kept: list[Any] = [None, ()]

    def part(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """Output of sibling `index` for x; computes all of them when x is new."""
        if x is not self._kept[0]:
            self._kept[:] = x, self.linear(x).split(self.sizes, dim=-1)
        part = self._kept[1][index]
        if index == len(self.sizes) - 1:
            self._kept[:] = None, ()
        return part


class JoinedPart(nn.Module):
    """Stands where one of the joined projections stood."""

    def __init__(self, joined: Joined, index: int) -> None:
        super().__init__()
        self.joined, self.index = joined, index

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.joined.part(self.index, x)


class PackedWeight:
    """A weight in oneDNN's own layout, and as columns [in, out] for one row if asked; copies of a model share it."""

    def __init__(self, weight: torch.Tensor, columns: bool = False) -> None:
        self.columns = weight.t().contiguous() if columns else None
        self.tensor = torch.ops.mkldnn._reorder_linear_weight(weight, PACK_ROWS)

    def __deepcopy__(self, memo: dict) -> "PackedWeight":
        return self


class PackedLinear(nn.Module):
    """nn.Linear over a packed weight."""

    def __init__(self, linear: nn.Linear, columns: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.packed = PackedWeight(linear.weight.detach(), columns)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = x.shape[-2]
        if count == 1 and self.packed.columns is not None:
            out = x @ self.packed.columns
            return out if self.bias is None else out.add_(self.bias)
        missing = padded_rows(count) - count
        if count == 1:
            rows = x.expand(*x.shape[:-2], 1 + missing, -1)  # cheaper than zeros, and a decode step of one row shows it
        else:
            rows = F.pad(x, (0, 0, 0, missing)) if missing else x
        out = torch.ops.mkldnn._linear_pointwise.default(rows, self.packed.tensor, self.bias, "none", [], "")
        return out.narrow(-2, 0, count) if missing else out


def padded_rows(rows: int) -> int:
    """The number of rows that a product of `rows` rows is computed with."""
    step = next((step for most, step in ROW_STEPS if rows <= most), LAST_STEP)
    return -(-rows // step) * step


def join_linears(linears: list[nn.Linear]) -> nn.Linear:
    """One nn.Linear whose output is the outputs of all of them, side by side."""
    first, biased = linears[0], linears[0].bias is not None
    with torch.device("meta"):
        joined = nn.Linear(first.in_features, sum(linear.out_features for linear in linears), bias=biased)
    joined.weight = nn.Parameter(torch.cat([linear.weight.detach() for linear in linears]), requires_grad=False)
    if biased:
        joined.bias = nn.Parameter(torch.cat([linear.bias.detach() for linear in linears]), requires_grad=False)
    return joined


def join_projections(module: nn.Module) -> int:
    """Join every set of siblings that fits a pattern; returns how many. What does not fit stays as it was."""
    count = 0
    for parent in [
        part for part in module.modules() if type(part) is not nn.Linear
    ]:  # a list of linears would keep them
        for names in PATTERNS:
            linears = [getattr(parent, name, None) for name in names]
            if fits(linears):
                joined = Joined(linears)
                for index, name in enumerate(names):
                    setattr(parent, name, JoinedPart(joined, index))
                count += 1
    return count


def fits(linears: list) -> TypeGuard[list[nn.Linear]]:
    """Plain linears of one input size, with a bias all or none."""
    plain = all(type(linear) is nn.Linear for linear in linears)
    return plain and len({(linear.in_features, linear.bias is None) for linear in linears}) == 1


def pack_linears(module: nn.Module) -> int:
    """Replace every plain nn.Linear by a packed one; returns how many (0 where this torch can't pack)."""
    if not can_pack():
        return 0
    places = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and child.weight.dtype == torch.float32
    ]
    columns = columns_pay([linear for _, _, linear in places])
    count = len(places)
    while places:  # each plain weight goes as its packed one comes
        parent, name, linear = places.pop()
        setattr(parent, name, PackedLinear(linear, columns))
    return count


def columns_pay(linears: list[nn.Linear]) -> bool:
    """Whether one row's products are to run over plain columns, a second copy of the weights: on some processors they
    take half as long, on others longer. The largest weight is timed, if it is large enough to show a difference."""
    free = free_bytes(torch.device("cpu"))
    nbytes = sum(linear.weight.nbytes for linear in linears)
    largest = max(linears, key=lambda linear: linear.weight.nbytes, default=None)
    if largest is None or largest.weight.nbytes < LEAST_BYTES or free is None or nbytes > free * COLUMNS_SHARE:
        return False
    both, row = PackedLinear(largest, columns=True), torch.ones(1, 1, largest.in_features)
    packed = PackedLinear(largest)
    with torch.inference_mode():
        return best_s(both, row) < COLUMNS_GAIN * best_s(packed, row)


def best_s(product: nn.Module, row: torch.Tensor, tries: int = 5) -> float:
    """Seconds of the fastest of a few calls."""
    times = []
    for _ in range(tries):
        start = time.perf_counter()
        product(row)
        times.append(time.perf_counter() - start)
    return min(times)


def can_pack() -> bool:
    """Whether this torch has the packed product and it gives what nn.Linear gives."""
    linear, x = nn.Linear(32, 16, device="meta"), torch.linspace(-1, 1, 96).view(1, 3, 32)
    linear.weight = nn.Parameter(torch.linspace(-1, 2, 512).view(16, 32), requires_grad=False)
    linear.bias = nn.Parameter(torch.linspace(0, 1, 16), requires_grad=False)
    try:
        with torch.inference_mode():
            return bool(torch.allclose(PackedLinear(linear)(x), linear(x), atol=1e-5))
    except (AttributeError, RuntimeError):  # no such product, or none for this processor
        return False
