"""Models of this process: engines of one model share its weights, and each worker has a module tree of its own."""

import threading
import weakref
from pathlib import Path
from typing import Any

import torch

from disagg.plan.config import Config
from disagg.plan.errors import ConfigError
from disagg.run.model.model import DTYPES, Model, load_model

_LOADED: "weakref.WeakValueDictionary[tuple, Model]" = weakref.WeakValueDictionary()  # while an engine has it
_LOADING = threading.Lock()


def load(config: Config, device: torch.device | str) -> Model:
    """The config's model on a device, shared with the other engines of this process while its files do not change."""
    options: dict[str, Any] = dict(dtype=config.dtype, attention=config.attention)
    options["join_projections"] = config.join_projections
    key = (str(config.model), str(torch.device(device)), *options.values(), _files(config.model))
    with _LOADING:
        model = _LOADED.get(key)
        if model is None:
            model = _LOADED[key] = load_model(config.model, **options, device=device)
        return model


def _files(model: str) -> tuple:
    """Names, sizes and times of a folder's files, which a change changes."""
    try:
        found = sorted(Path(model).iterdir())
        return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in found)
    except OSError:  # no folder, or one whose loading raises what is wrong
        return ()


def in_a_forked_process() -> None:
    """A thread of the parent that held the lock does not exist here."""
    global _LOADING
    _LOADING = threading.Lock()


def check_named(config: Config, model: Model) -> None:
    """ConfigError if the model that is handed over is not the one that the config names."""
    if str(model.name) != str(config.model):
        raise ConfigError(
            f"the config names the model {config.model!r}, and the one handed over is {model.name!r}; "
            f"say Config.preset(…, model={str(model.name)!r})"
        )
    if model.shape.dtype != DTYPES[config.dtype]:
        dtype = str(model.shape.dtype).removeprefix("torch.")
        raise ConfigError(
            f"the config says dtype={config.dtype!r}, and the model handed over is in {dtype}; say dtype={dtype!r}"
        )


def model_on(device: torch.device, model: Model, compiled: bool) -> Model:
    """A worker's own module tree: over the model's weights, or over a copy of them on another device."""
    replica = model.replica(device)
    if compiled:
        replica.compile()
    return replica
