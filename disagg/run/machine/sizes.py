"""Sizes that the user left open: block counts from the memory there is, and a link's bandwidth from a measured c."""

import torch

from disagg.plan.blocks import blocks_for
from disagg.plan.config import DEFAULT_TOKENS, Config
from disagg.plan.errors import ConfigError
from disagg.run.gpu.memory import free_bytes
from disagg.run.kv_cache import KVShape
from disagg.run.model.layer_time import compute_of_a_layer
from disagg.run.model.model import Model


def with_block_counts(config: Config, shape: KVShape) -> Config:
    """The config with each block count that was None filled in."""
    changes = {}
    for name, tokens in DEFAULT_TOKENS.items():
        if getattr(config, name) is None:
            device = {"prefill_blocks": config.prefill_device, "decode_blocks": config.decode_device}.get(name, "cpu")
            free = free_bytes(torch.device(device))
            room = tokens if free is None else min(tokens, free // 8 // shape.token_bytes)
            changes[name] = max(1, blocks_for(room, config.block_size))
    return config.replace(**changes)


class Settings:
    """What one engine was built with, and so what a live change may ask for."""

    def __init__(self, config: Config, model: Model) -> None:
        self._model = model
        self._compute_s: float | None = None  # c, measured when a link asks for it
        self.first = self._dialled(with_block_counts(config, model.shape))
        self._allocated = {name: getattr(self.first, name) for name in DEFAULT_TOKENS}

    def measure_for(self, config: Config, changes: dict) -> None:
        """Measures c, where a link among the changes asks for it: passes of the model, on the caller's thread."""
        if "link" in changes and any(link.compute_ratio is not None for link in config.replace(**changes).links):
            self._compute()

    def changed(self, config: Config, changes: dict) -> Config:
        """The config with these changes; a size of None stands for what was allocated."""
        sizes = {name: most for name, most in self._allocated.items() if changes.get(name, 0) is None}
        return self._dialled(config.replace(**changes | sizes))

    def check_growth(self, config: Config, captured: bool) -> None:
        """ConfigError where a live change asks for more than was allocated, or than the places that were `captured`."""
        limits = {name: (most, "allocated") for name, most in self._allocated.items()}
        if captured:
            limits["max_batch"] = (self.first.max_batch, "places captured")
        for name, (most, what) in limits.items():
            if (asked := getattr(config, name)) > most:
                beyond = f"{name} can't grow beyond the {most} {what} at the start; got {asked}"
                raise ConfigError(f"{beyond}. Build a new engine for more")

    def _dialled(self, config: Config) -> Config:
        """The config with each `Link.ratio` turned into a bandwidth, by measuring c once."""
        links = config.links
        if all(link.compute_ratio is None for link in links):
            return config
        nbytes = 128 * self._model.shape.layer_token_bytes
        return config.replace(link=tuple(link.against(self._compute(), nbytes) for link in links))

    def _compute(self) -> float:
        """Seconds of a layer; measured once, with a model of its own that no other engine uses meanwhile."""
        if self._compute_s is None:
            self._compute_s = compute_of_a_layer(self._model.replica())
        return self._compute_s
