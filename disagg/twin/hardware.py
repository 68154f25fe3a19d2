"""Speeds of devices and links, by data sheet and by measurement, and the times of a model's work on them.

    simulate(Config.preset("streamed", model="random-llama3-8b"), requests, hardware="2xL4")

A roofline with shares: a pass takes a fixed time and then the slower of computing and reading, each at the share of the
device's peak that a real engine reached on one GPU. Nothing here is fitted to the local machine.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from disagg.plan import link
from disagg.plan.checks import short
from disagg.plan.commands import Worker
from disagg.plan.config import Config
from disagg.plan.errors import ConfigError
from disagg.plan.link import LaneName, LaneRole
from disagg.twin.model_shapes import sizes_of
from disagg.twin.route_cost import RouteCost
from disagg.twin.work import Sizes, layers_flops

DIALLED = 128  # prompt tokens of the layer that `Link.ratio` refers to
MOST_BLOCKS = 2**17  # of a memory without a given size
MEMORY_SHARE = 0.9  # of a device's memory, for weights and K/V; the rest is for activations and the system


@dataclass(frozen=True)
class Fit:
    """Shares of a device's peaks that work reaches, and fixed costs of each pass, step and copy."""

    products: float  # share of FLOP/s, in matrix products
    attention: float  # share of FLOP/s, in prefill's attention
    reading: float  # share of bytes/s, of weights
    kv: float  # share of bytes/s, of K/V in a decode step
    copying: float = 1.0  # share of a link's bytes/s
    pass_s: float = 0.0  # fixed cost of a prefill pass
    step_s: float = 0.0  # of a decode step
    row_s: float = 0.0  # of each of its rows
    batch_s: float = 0.0  # of a step with several rows
    copy_s: float = 0.0  # of a copy
    turn_s: float = 0.0  # from a worker's answer to its next work, if the controller decides it after the answer
    beside_pass: float = 1.0  # factor on a pass's time while another worker computes
    beside_step: float = 1.0  # the same for a step
    handed_off: float = 1.0  # share of a layer's time before its hand-off; the rest is attention and MLP
    source: str = "assumption"


#: Fitted to one H200 under this package's engine (Llama-3-8B shape, November 2026: passes of 2,048 and 8,192 tokens in
#: 47.5 and 217 ms, steps of 1, 16 and 64 rows at context 1,024 in 4.87, 5.44 and 7.28 ms; `python -m benchmarks gpu`).
#: That other GPUs reach the same shares is an assumption.
LIKE_H200 = Fit(
    0.66, 0.40, 0.75, 0.75, pass_s=1e-3, step_s=6.6e-4, copy_s=5e-5, source="as one H200; assumption elsewhere"
)
LIKE_ZEN3 = Fit(0.83, 0.4, 0.9, 0.5, pass_s=2e-3, step_s=2e-3, row_s=2e-3, copy_s=1e-4, source="assumption")


@dataclass(frozen=True)
class Device:
    """One accelerator, or one CPU core."""

    name: str
    flops_per_s: float  # dense matrix products in the model's 16 bits; on a CPU in fp32
    bytes_per_s: float  # of its memory
    memory: int  # bytes
    link: str  # to its neighbours, by name in plan/link
    host_link: str  # to pinned host memory
    source: str
    fit: Fit = LIKE_H200


_GB, _TF = 10**9, 10**12
_ADA = "NVIDIA Ada architecture paper, 2022: fp16 with fp32 sums"
_ZEN3 = "one Zen 3 core with AVX2, measured, November 2026"
#: By data sheet; FLOP/s without sparsity. An 80 GB card's memory is counted as 80 · 10⁹ bytes.
_SHEETS = (
    Device("L4", 121 * _TF, 300 * _GB, 24 * _GB, "pcie4x16", "pcie4x16", "NVIDIA L4 data sheet, 2023"),
    Device("A10", 125 * _TF, 600 * _GB, 24 * _GB, "pcie4x16", "pcie4x16", "NVIDIA A10 data sheet, 2021"),
    Device("A100", 312 * _TF, 2039 * _GB, 80 * _GB, "nvlink3", "pcie4x16", "NVIDIA A100 80GB SXM data sheet, 2021"),
    Device("H100", 989 * _TF, 3350 * _GB, 80 * _GB, "nvlink4", "pcie5x16", "NVIDIA H100 SXM data sheet, 2023"),
    Device("H200", 989 * _TF, 4800 * _GB, 141 * _GB, "nvlink4", "pcie5x16", "NVIDIA H200 SXM data sheet, 2023"),
    Device("RTX4090", 165 * _TF, 1008 * _GB, 24 * _GB, "pcie4x16", "pcie4x16", _ADA),
    Device("CPU", 0.1 * _TF, 11 * _GB, 8 * _GB, "memory", "memory", _ZEN3, LIKE_ZEN3),
)
DEVICES = {device.name.lower(): device for device in _SHEETS}


def device_named(name: str) -> Device:
    """A device by name, in any case; ConfigError with the nearest name."""
    key = name.lower().replace(" ", "").replace("-", "") if isinstance(name, str) else ""
    if key not in DEVICES:
        near = difflib.get_close_matches(key, DEVICES, n=1)
        words = f"; nearest: {DEVICES[near[0]].name!r}" if near else ""
        known = ", ".join(device.name for device in DEVICES.values())
        raise ConfigError(f'hardware {short(name)} is unknown{words}; known: {known}, and as many as "2xL4"')
    return DEVICES[key]


@dataclass(frozen=True)
class Hardware:
    """The devices of a prefill and a decode worker, and the count of all devices."""

    prefill: Device
    decode: Device
    count: int = 2

    @classmethod
    def parse(cls, value: Any) -> "Hardware":
        """From "2xL4", "H100+L4" (prefill on the first, decode on the second), a Device, or itself. ConfigError."""
        if isinstance(value, Hardware):
            return value
        if isinstance(value, Device):
            return cls(value, value)
        text = value.strip() if isinstance(value, str) else ""
        if "+" in text:
            first, _, second = text.partition("+")
            return cls(device_named(first.strip()), device_named(second.strip()))
        found = re.fullmatch(r"(?:(\d{1,4})\s*[x×]\s*)?(.+)", text)
        device, count = device_named(found[2] if found else value), int(found[1] or 2) if found else 2
        if count < 1:
            raise ConfigError(f"hardware {short(value)}: there must be one device at least")
        return cls(device, device, count)

    @property
    def words(self) -> str:
        if self.prefill == self.decode:
            return f"{self.count} × {self.prefill.name}"
        return f"{self.prefill.name} for prefill, {self.decode.name} for decode"


@dataclass(frozen=True)
class Costs:
    """Seconds of a model's work on one device: linear in the counts of work, so that they can be fitted."""

    sizes: Sizes
    device: Device

    def pass_s(self, chunks: Sequence[tuple[int, int]], rows: Sequence[int] = ()) -> float:
        """All layers of a pass over chunks [start, stop) and rows of these contexts, without the output head."""
        sizes, device, fit = self.sizes, self.device, self.device.fit
        products = 2 * sizes.weights * sum(stop - start for start, stop in chunks)
        attention = layers_flops(sizes, chunks) - products
        products += 2 * sizes.weights * len(rows)
        computing = products / (fit.products * device.flops_per_s) + attention / (fit.attention * device.flops_per_s)
        reading = (
            sizes.itemsize * sizes.weights / fit.reading + sizes.token_bytes * sum(rows) / fit.kv
        ) / device.bytes_per_s
        return fit.pass_s + len(rows) * fit.row_s + max(computing, reading)

    def head_s(self, rows: int) -> float:
        """The output head over these rows; without rows its weights are not read."""
        if not rows:
            return 0.0
        sizes, device, fit = self.sizes, self.device, self.device.fit
        computing = 2 * sizes.head_weights * rows / (fit.products * device.flops_per_s)
        return max(computing, sizes.itemsize * sizes.head_weights / (fit.reading * device.bytes_per_s))

    def step_s(self, rows: int, tokens: int) -> float:
        """A decode step: `tokens` whose K/V it reads include padding and the new tokens."""
        sizes, device, fit = self.sizes, self.device, self.device.fit
        computing = 2 * (sizes.weights + sizes.head_weights) * rows / (fit.products * device.flops_per_s)
        reading = (sizes.weight_bytes / fit.reading + sizes.token_bytes * tokens / fit.kv) / device.bytes_per_s
        return fit.step_s + rows * fit.row_s + (fit.batch_s if rows > 1 else 0.0) + max(computing, reading)


@dataclass(frozen=True)
class Predicted:
    """Times of a model on given hardware, in whole ns, for a simulation."""

    prefill: Costs
    decode: Costs
    hop_bytes_per_s: float  # of a hop through host memory, and of spills and fetches
    link_bytes_per_s: float  # of the direct link
    pads: bool
    steps_in_flight: int
    other: Costs | None = None  # of the first of two workers that do both, where its device is another kind

    @classmethod
    def of(cls, config: Config, hardware: Hardware) -> "Predicted":
        """Times of the config's model. ConfigError for fewer devices than workers, or too little memory."""
        sizes = sizes_of(config.model, config.dtype)
        prefill = hardware.decode if config.colocated else hardware.prefill
        workers = config.prefill_workers + config.decode_workers
        if workers > hardware.count:
            raise ConfigError(f"{workers} workers need as many devices, and {hardware.words} are {hardware.count}")
        hop, direct = link.PRESETS[hardware.decode.host_link], link.PRESETS[hardware.prefill.link]
        pads = hardware.decode.name == "CPU"
        pair = config.colocated and config.decode_workers > 1 and hardware.prefill != hardware.decode
        other = Costs(sizes, hardware.prefill) if pair else None
        return cls(Costs(sizes, prefill), Costs(sizes, hardware.decode), hop, direct, pads, 1 if pads else 2, other)

    def at(self, worker: Worker) -> "Predicted":
        """The times of this worker: of workers that do both, every second one is on the device for decode."""
        if self.other is None or worker.index % 2:
            return self
        return replace(self, prefill=self.other, decode=self.other)

    @property
    def layers(self) -> int:
        return self.decode.sizes.layers

    @property
    def token_bytes(self) -> int:
        return self.decode.sizes.token_bytes

    def pass_ns(
        self, chunks: Sequence[tuple[int, int]], ending: int, beside: bool, rows: Sequence[int] = ()
    ) -> tuple[int, int, int]:
        """As `Speeds.pass_ns`; only prompts that end, and rows, need the output head."""
        costs, fit = self.prefill, self.prefill.device.fit
        slow = fit.beside_pass if beside else 1.0
        layer_ns = round(1e9 * slow * costs.pass_s(chunks, rows) / self.layers)
        lead_ns = round(fit.handed_off * layer_ns)
        return lead_ns, layer_ns, layer_ns - lead_ns + round(1e9 * slow * costs.head_s(ending + len(rows)))

    def step_ns(self, rows: int, tokens: int, beside: bool) -> int:
        slow = self.decode.device.fit.beside_step if beside else 1.0
        return round(1e9 * slow * self.decode.step_s(rows, tokens))

    @property
    def turn_ns(self) -> int:
        return round(1e9 * self.decode.device.fit.turn_s)

    def copy_ns(self, lane: LaneName, nbytes: int) -> int:
        return round(1e9 * (self.decode.device.fit.copy_s + nbytes / self._rate(lane)))

    def cost(self, lane: LaneName) -> RouteCost:
        """Costs of the direct link, or of a hop between a device and host memory."""
        return RouteCost(self.decode.device.fit.copy_s, self._rate(lane))

    def _rate(self, lane: LaneName) -> float:
        rate = self.link_bytes_per_s if lane.role is LaneRole.DIRECT else self.hop_bytes_per_s
        return rate * self.decode.device.fit.copying

    def sized(self, config: Config) -> Config:
        """The config with block counts that fit the devices' memory, and a link's ratio as a bandwidth.
        ConfigError with the bytes that are missing."""
        block_bytes = (config.block_size or 1) * self.token_bytes
        changes: dict[str, Any] = {}
        least = min(filter(None, (self.decode, self.other)), key=lambda costs: costs.device.memory)
        for name, costs in (("prefill_blocks", self.prefill), ("decode_blocks", least)):
            device, weights = costs.device, costs.sizes.weight_bytes
            room, wanted = int(MEMORY_SHARE * device.memory) - weights, getattr(config, name)
            need = (wanted or 1) * block_bytes
            if room < need:
                raise ConfigError(
                    f"{config.model} does not fit {device.name}: weights of {weights:,} bytes and {wanted or 1} blocks "
                    f"of K/V need {weights + need:,}, which is {need - room:,} more than {MEMORY_SHARE:.0%} of its "
                    f"{device.memory:,}. Take another device, a smaller model or dtype, or fewer blocks"
                )
            changes[name] = min(room // block_bytes, MOST_BLOCKS) if wanted is None else wanted
        if config.host_blocks is None:
            changes["host_blocks"] = changes["decode_blocks"]
        layer_s, nbytes = self.prefill.pass_s([(0, DIALLED)]) / self.layers, DIALLED * self.token_bytes // self.layers
        changes["link"] = tuple(link.against(layer_s, nbytes) for link in config.links)
        return config.replace(**changes)
