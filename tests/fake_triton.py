"""Enough of triton to run kernels of ours on the CPU: one program after the other, with PyTorch's operators.

It shows what programs compute and where they load and store; layouts, speed and races need a GPU.
"""

import importlib.util
import itertools
import random
import sys
import time
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import torch


def install(monkeypatch, package, *kernels: str) -> None:
    """These kernels of the package, made anew with this triton, until the test is over."""
    language, triton = make_language(), ModuleType("triton")
    triton.language = language
    triton.jit = lambda function=None, **options: Kernel(function, language) if function else triton.jit
    with monkeypatch.context() as meanwhile:
        meanwhile.setitem(sys.modules, "triton", triton)
        meanwhile.setitem(sys.modules, "triton.language", language)
        for name in kernels:
            spec = importlib.util.find_spec(f"{package.__name__}.{name}")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            monkeypatch.setitem(sys.modules, spec.name, module)
            monkeypatch.setattr(package, name, module, raising=False)


class Kernel:
    """`kernel[grid](...)` runs the grid's programs in some order; a call from another kernel is a plain call."""

    def __init__(self, function, language):
        self.function, self.language = function, language

    def __call__(self, *args):
        return self.function(*args)

    def __getitem__(self, grid):
        def launch(*args, num_warps=4, num_stages=2, launch_pdl=False, **constants):
            args = [Pointer.to(arg) if isinstance(arg, torch.Tensor) else arg for arg in args]
            self.language.num_programs = grid.__getitem__
            places = list(itertools.product(*map(range, grid)))
            random.Random(len(places)).shuffle(places)
            for place in places:
                self.language.program_id = torch.tensor(place).__getitem__
                self.function(*args, **constants)

        return launch


@dataclass(frozen=True)
class Pointer:
    """Into the flat memory behind a tensor, at one offset or at many."""

    memory: torch.Tensor
    offset: int | torch.Tensor = 0

    @classmethod
    def to(cls, tensor: torch.Tensor) -> "Pointer":
        size = tensor.untyped_storage().nbytes() // tensor.itemsize - tensor.storage_offset()
        return cls(tensor.as_strided((size,), (1,)))

    def __add__(self, offset):
        return Pointer(self.memory, self.offset + offset)

    @property
    def dtype(self):
        return SimpleNamespace(element_ty=self.memory.dtype)

    def places(self, mask) -> tuple[torch.Tensor, torch.Tensor]:
        """Offsets and mask, of one shape."""
        places, mask = torch.broadcast_tensors(torch.as_tensor(self.offset), torch.as_tensor(mask))
        used = places[mask]
        assert used.numel() == 0 or 0 <= int(used.min()) <= int(used.max()) < len(self.memory), "out of bounds"
        return places, mask


def load(pointer: Pointer, mask=True, other=0, volatile=False, eviction_policy=""):
    places, mask = pointer.places(mask)
    found = torch.full(places.shape, other, dtype=pointer.memory.dtype)
    found[mask] = pointer.memory[places[mask]]
    return found


def store(pointer: Pointer, value, mask=True):
    places, mask = pointer.places(mask)
    value = torch.as_tensor(value).to(pointer.memory.dtype).expand(places.shape)
    pointer.memory[places[mask]] = value[mask]


def atomic_add(pointer: Pointer, value, sem, scope):
    before = load(pointer)
    store(pointer, before + value)
    return before


def make_language() -> ModuleType:
    """triton.language, as far as the kernels use it."""
    language, tensor = ModuleType("triton.language"), torch.as_tensor
    language.__dict__.update(
        constexpr=None, int32=torch.int32, int64=torch.int64, float32=torch.float32,
        load=load, store=store, atomic_add=atomic_add, debug_barrier=lambda: None, static_range=range,
        arange=lambda start, stop: torch.arange(start, stop, dtype=torch.int32),
        zeros=lambda shape, dtype: torch.zeros(shape, dtype=dtype),
        full=lambda shape, value, dtype: torch.full(shape, value, dtype=dtype),
        where=torch.where, trans=torch.t, rsqrt=torch.rsqrt, cdiv=lambda a, b: (a + b - 1) // b,
        cos=torch.cos, sin=torch.sin, sum=torch.sum, max=torch.amax, min=torch.amin,
        exp2=lambda x: torch.exp2(tensor(x)),
        maximum=lambda a, b: torch.maximum(tensor(a), tensor(b)),
        minimum=lambda a, b: torch.minimum(tensor(a), tensor(b)),
        dot=lambda a, b, acc=0: a.float() @ b.float() + acc,
        range=lambda start, stop, step=1: range(int(start), int(stop), int(step)),
        inline_asm_elementwise=lambda *args, **options: None,
        extra=SimpleNamespace(cuda=SimpleNamespace(
            globaltimer=lambda: torch.tensor(time.monotonic_ns()),
            gdc_wait=lambda: None, gdc_launch_dependents=lambda: None,
        )),
    )  # fmt: skip
    return language
