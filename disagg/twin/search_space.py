"""The candidates of `tune`: arrangements of up to `count` devices, split or colocated, then one setting at a time."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from disagg.plan.config import Config
from disagg.plan.errors import ConfigError
from disagg.twin.hardware import Device, Hardware
from disagg.twin.model_shapes import sizes_of

MOST_DEVICES = 16
CHUNKS = (256, 512, 1024, 2048, 4096, 8192)  # tokens of one prefill pass
BATCHES = (8, 16, 32, 64, 128, 256)  # rows of one decode step
WIDE = 128  # rows for the first trial of an arrangement
LAYERS = (1, 2, 4, 8, 16)  # of a copy; also None: chosen by the link's fixed cost and bandwidth
RINGS = (2, 4, 8, 16, 32)  # slots between the two hops of "staged"


@dataclass(frozen=True)
class Candidate:
    """A config and its devices, one for each worker."""

    config: Config
    hardware: Hardware

    @property
    def each_device(self) -> list[Device]:
        first, second = self.hardware.prefill, self.hardware.decode
        return [first] * self.hardware.count if first == second else [first, second]

    @property
    def place(self) -> str:
        """The devices as text for `Hardware.parse`."""
        one, other = self.hardware.prefill.name, self.hardware.decode.name
        return f"{self.hardware.count}x{one}" if one == other else f"{one}+{other}"

    @property
    def arrangement(self) -> str:
        config = self.config
        if config.colocated:
            return "one for both" if config.decode_workers == 1 else f"{config.decode_workers}, each for both"
        return f"{config.prefill_workers} prefill + {config.decode_workers} decode"

    def but(self, **changes: Any) -> "Candidate":
        return Candidate(self.config.replace(**changes), self.hardware)


def in_words(place: str, arrangement: str, config: Config) -> str:
    words = f"{place}, {arrangement}: chunks of {config.chunk_tokens:,}, {config.max_batch} rows a step"
    if config.colocated:
        return words
    layers = "" if config.layers_per_copy is None else f", {config.layers_per_copy} layers a copy"
    ring = f" through {config.ring_slots} slots" if config.route == "staged" else ""
    return f"{words}, {config.route}{ring}{layers}"


def base_of(config: Config | str | os.PathLike[str], hardware: Hardware) -> Config:
    """A Config unchanged; for a model's name, a config for these devices: GPUs use bfloat16. ConfigError."""
    if isinstance(config, Config):
        if config.sm_split is not None:
            raise ConfigError("sm_split: the twin does not know how a GPU behaves that is cut by SMs; leave it out")
        return config.replace(link=tuple(config.link)) if isinstance(config.link, list) else config
    if hardware.decode.name == "CPU":
        return Config(model=os.fspath(config))
    return Config(model=os.fspath(config), dtype="bfloat16", prefill_device="cuda:0", decode_device="cuda:1")


def arrangements(base: Config, hardware: Hardware) -> list[Candidate]:
    """All arrangements of one to all devices, the fewest first. ConfigError for more than MOST_DEVICES."""
    if hardware.count > MOST_DEVICES:
        raise ConfigError(f"tune shares out up to {MOST_DEVICES} devices; {hardware.words} are {hardware.count}")
    first, second = hardware.prefill, hardware.decode
    if first != second:
        alone = [colocated(base, Hardware(device, device, 1)) for device in (first, second)]
        pairs = [split(base, Hardware(*both, 2), 1) for both in ((first, second), (second, first))]
        return [*alone, *pairs, colocated(base, Hardware(first, second, 2))]
    found = []
    for count in range(1, hardware.count + 1):
        devices = Hardware(first, second, count)
        found += [colocated(base, devices), *(split(base, devices, prefill) for prefill in range(1, count))]
    return found


def colocated(base: Config, hardware: Hardware) -> Candidate:
    alone = {"decode_device": base.prefill_device} if hardware.count == 1 else {}
    both = base.replace(prefill_workers=0, decode_workers=hardware.count, route="bulk", **alone)
    return Candidate(both, hardware)


def split(base: Config, hardware: Hardware, prefill: int) -> Candidate:
    """Some devices prefill and the others decode; K/V go directly, layer by layer."""
    route = "direct" if base.colocated or base.route == "bulk" else base.route
    decode = hardware.count - prefill
    return Candidate(base.replace(prefill_workers=prefill, decode_workers=decode, route=route), hardware)


def starts(candidate: Candidate) -> list[Candidate]:
    """The arrangement as given, and with a large batch: one decode device for three may need more rows."""
    return list(dict.fromkeys([candidate, candidate.but(max_batch=WIDE)]))


def settings(candidate: Candidate) -> Iterator[list[dict[str, Any]]]:
    config = candidate.config
    yield [{"chunk_tokens": tokens} for tokens in CHUNKS if tokens % (config.block_size or 1) == 0]
    yield [{"max_batch": rows} for rows in BATCHES]
    if not config.colocated:
        layers = sizes_of(config.model, config.dtype).layers
        yield [{"layers_per_copy": some} for some in (None, *LAYERS) if some is None or some <= layers]
        yield [{"route": "bulk"}, {"route": "direct"}, *({"route": "staged", "ring_slots": slots} for slots in RINGS)]
