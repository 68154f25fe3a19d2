"""Where the untouched module of a model comes from: made here with weights of its own, or a folder."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch

from disagg.plan.errors import ModelError
from disagg.run.gpu.memory import check_room
from disagg.run.model.random_models import RANDOM, SHAPES, make_random, make_tiny_llama
from disagg.run.model.text import ByteText, Text

WEIGHTS_ADVICE = 'Take a smaller model, dtype="bfloat16", or another device; close engines that still hold memory.'
Progress = Callable[[str], None] | None


class Source(ABC):
    """Of one model, in this dtype on this device."""

    def __init__(self, name: str, dtype: torch.dtype, device: torch.device | str) -> None:
        self.name, self.dtype, self.device = name, dtype, torch.device(device)

    @abstractmethod
    def prepare(self, progress: Progress) -> None:
        """Checks the name or the files, and makes what is missing; ModelError."""

    @abstractmethod
    def text(self) -> Text: ...

    @abstractmethod
    def module(self) -> torch.nn.Module:
        """A fresh module tree with its own attention and plain weights; EngineError where they can't fit."""

    def warn(self, module: torch.nn.Module, text: Text) -> None:
        """A ModelWarning for what the source asks for and does not get."""
        return

    def _check_room(self, weights: int, device: torch.device) -> None:
        check_room(f"the weights of {self.name}", device, weights * self.dtype.itemsize, WEIGHTS_ADVICE)

    def _placed(self, module: Any) -> torch.nn.Module:
        """In its dtype and on its device."""
        for parameter in module.parameters():  # not buffers: transformers keeps rotary frequencies in fp32
            parameter.data = parameter.data.to(self.dtype)
        return module.to(self.device).eval().requires_grad_(False)


class Made(Source):
    """`tiny` from its seed, or a known shape with random weights."""

    def prepare(self, progress: Progress) -> None:
        if self.name.startswith(RANDOM) and self.name.removeprefix(RANDOM) not in SHAPES:
            known = ", ".join(RANDOM + shape for shape in SHAPES)
            raise ModelError(f"{self.name}: no such shape; known: {known}")

    def text(self) -> Text:
        return ByteText()

    def module(self) -> torch.nn.Module:
        if not self.name.startswith(RANDOM):
            with torch.random.fork_rng(devices=[]):
                return self._placed(make_tiny_llama())
        shape = self.name.removeprefix(RANDOM)
        weights = sum(weight.numel() for weight in make_random(shape, self.dtype, "meta").parameters())
        self._check_room(weights, self.device)
        return make_random(shape, self.dtype, self.device).eval().requires_grad_(False)
