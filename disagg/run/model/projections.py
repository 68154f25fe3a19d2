"""Fewer and better matrix products: q/k/v joined into one, gate/up into one, weights packed for oneDNN on the CPU.

A joined product stands behind the names q_proj, k_proj and v_proj. The packed weight is the only copy, and replicas
share it; plain columns are kept as well where a product of one row is clearly faster over them, and memory allows.
"""

import timeit
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import nn

from disagg.run.gpu.memory import free_bytes

PATTERNS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
PACK_ROWS = 16  # oneDNN packs for a number of rows: 16 was best or equal for 1, 4, 16, 128 and 256 rows

#: (most rows, the multiple that they are padded to). oneDNN keeps half a megabyte of code for every number of rows that
#: it meets, so there must be few; fewer than four rows take its slower path.
ROW_STEPS = ((32, 4), (256, 16))
LAST_STEP = 64

LEAST_BYTES = 16 << 20  # of a weight whose products are timed: more than a core's caches hold
COLUMNS_GAIN = 0.8  # of the packed product's time that columns may take to be worth a second copy
COLUMNS_SHARE = 0.125  # of the free memory that this copy may take


class Joined(nn.Module):
    """One product for several projections of the same input, cut into parts by their sizes.

    It keeps the parts from the first part's call to the last one's, so each worker thread needs its own replica.
    """

    def __init__(self, linears: list[nn.Linear]) -> None:
        super().__init__()
        self.sizes = [linear.out_features for linear in linears]
        self.linear = join_linears(linears)
        self._kept: list[Any] = [None, ()]  # input and parts; a list, since setting an attribute of a Module is slow

    def part(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """Output of projection `index` for x; computes all of them when x is new."""
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
    """A weight in oneDNN's own layout, and as columns [in, out] if wanted; copies of a model share it."""

    def __init__(self, weight: torch.Tensor, columns: bool) -> None:
        self.columns = weight.t().contiguous() if columns else None
        self.tensor = torch.ops.mkldnn._reorder_linear_weight(weight, PACK_ROWS)

    def __deepcopy__(self, memo: dict) -> "PackedWeight":
        return self


class PackedLinear(nn.Module):
    def __init__(self, linear: nn.Linear, columns: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.packed = PackedWeight(linear.weight.detach(), columns)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = x.shape[-2]
        if count == 1 and self.packed.columns is not None:
            out = x @ self.packed.columns
            return out if self.bias is None else out.add_(self.bias)
        missing = -count % next((step for most, step in ROW_STEPS if count <= most), LAST_STEP)
        if count == 1:
            rows = x.expand(*x.shape[:-2], 1 + missing, -1)  # cheaper than zeros, which a decode step of one row shows
        else:
            rows = F.pad(x, (0, 0, 0, missing)) if missing else x
        out = torch.ops.mkldnn._linear_pointwise.default(rows, self.packed.tensor, self.bias, "none", [], "")
        return out.narrow(-2, 0, count) if missing else out


def join_linears(linears: list[nn.Linear]) -> nn.Linear:
    """One nn.Linear whose output is the outputs of all of them, side by side."""
    first, biased = linears[0], linears[0].bias is not None
    with torch.device("meta"):
        joined = nn.Linear(first.in_features, sum(linear.out_features for linear in linears), bias=biased)
    joined.weight = nn.Parameter(torch.cat([linear.weight.detach() for linear in linears]), requires_grad=False)
    if biased:
        joined.bias = nn.Parameter(torch.cat([linear.bias.detach() for linear in linears]), requires_grad=False)
    return joined


def join_projections(module: nn.Module) -> None:
    """Join every set of projections that fits a pattern; what does not fit stays as it was."""
    parents = [part for part in module.modules() if type(part) is not nn.Linear]  # a list of linears would keep them
    for parent in parents:
        for names in PATTERNS:
            linears = [getattr(parent, name, None) for name in names]
            if fits(linears):
                joined = Joined(linears)
                for index, name in enumerate(names):
                    setattr(parent, name, JoinedPart(joined, index))


def fits(linears: list) -> TypeGuard[list[nn.Linear]]:
    """Plain linears of one input size, with a bias all or none."""
    plain = all(type(linear) is nn.Linear for linear in linears)
    return plain and len({(linear.in_features, linear.bias is None) for linear in linears}) == 1


def pack_linears(module: nn.Module) -> None:
    """Replace every plain nn.Linear by a packed one, where this torch can pack."""
    if not can_pack():
        return
    places = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and child.weight.dtype == torch.float32
    ]
    columns = columns_pay([linear for _, _, linear in places])
    while places:  # each plain weight goes as its packed one comes
        parent, name, linear = places.pop()
        setattr(parent, name, PackedLinear(linear, columns))


def columns_pay(linears: list[nn.Linear]) -> bool:
    """Whether one row's products run over plain columns, a second copy of the weights: some processors take half as
    long over them, others longer. The largest weight is timed, if it is large enough to show a difference."""
    free = free_bytes(torch.device("cpu"))
    nbytes = sum(linear.weight.nbytes for linear in linears)
    largest = max(linears, key=lambda linear: linear.weight.nbytes, default=None)
    if largest is None or largest.weight.nbytes < LEAST_BYTES or free is None or nbytes > free * COLUMNS_SHARE:
        return False
    both, row = PackedLinear(largest, columns=True), torch.ones(1, 1, largest.in_features)
    packed = PackedLinear(largest)
    with torch.inference_mode():
        return best_s(both, row) < COLUMNS_GAIN * best_s(packed, row)


def best_s(product: nn.Module, row: torch.Tensor) -> float:
    return min(timeit.repeat(lambda: product(row), repeat=5, number=1))


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
