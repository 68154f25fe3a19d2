"""Every setting, its checks, and the presets of the notebooks."""

import dataclasses
import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass

from disagg.plan.checks import is_number, is_text, is_whole, short
from disagg.plan.errors import ConfigError
from disagg.plan.link import LONGEST_S, Link, parse_link
from disagg.plan.policy import METHODS, POLICIES, Policy

ROUTES = ("bulk", "direct", "staged")


@dataclass(frozen=True)
class Config:
    """Every setting. Sizes at None follow from the machine, switches at None from the device.

    `prefill_workers=0` is the colocated arrangement: each decode worker prefills too, and workers alternate between the
    two devices where these differ.
    """

    model: str = "smollm2"  # or "tiny", "random-llama3-8b" (a shape), or a folder with a causal LM in safetensors
    dtype: str = "float32"
    attention: str = "auto"
    prefill_device: str = "cpu"
    decode_device: str = "cpu"
    prefill_workers: int = 1
    decode_workers: int = 1
    route: str = "direct"  # how K/V travel: "bulk" after prefill, "direct" by layers, "staged" by layers through a ring
    link: object = None  # Link, preset name, bytes/s, None (no dial), or a pair of them for the two hops of "staged"
    layers_per_copy: int | None = None  # None: 1 on the CPU, on a GPU by RouteCost
    ring_slots: int = 8
    block_size: int = None  # type: ignore[assignment]  # tokens; None: 16 on the CPU, on a GPU 256, flash-attn's page
    prefill_blocks: int | None = None
    host_blocks: int | None = 0  # 0: no paging, a preempted request is recomputed
    decode_blocks: int | None = None
    chunk_tokens: int = None  # type: ignore[assignment]  # of a prefill pass; None: 256 on the CPU, 2,048 on a GPU
    max_batch: int = 32  # rows of one decode step
    mixed_passes: bool = True  # rows decode in the prefill passes of their worker; False: passes and steps alternate
    conditional: bool = False  # workers that do both: each request stays on one or is split between two, by estimate
    bins: tuple[int, ...] = ()  # upper context lengths of the bins, in tokens; a last open bin follows
    policy: str | Policy = "fcfs"  # a name of plan/policy.py, or an object with its three methods
    itl_target_s: float | None = None  # adaptive composition: decode steps stay below this
    watchdog_s: float = 120.0
    threads: int = 1  # torch threads of the process (set once)
    join_projections: bool = True
    compile: bool | None = None  # torch.compile around the model's layers; None: on a GPU
    graphs: bool | None = None  # CUDA graphs of decode steps and of prefill passes; None: on a GPU
    fused_decode: bool | None = None  # captured decode steps of fewer kernels where it pays; None: on a GPU
    overlap: bool = True  # False, blocking: a pass waits in each layer's hand-off until its copies have landed
    pinned: bool = True  # host memory of ring and paging beside a GPU is page-locked; False: pageable
    peer_access: bool = True  # K/V may go from one GPU to another without the host; False: through pinned host memory
    sm_split: int | None = None  # SMs of decode alone where prefill shares its GPU; None: streams share all SMs
    seed: int = 0  # of sampling (temperature above 0), for requests without a seed
    verify_kv: bool | None = None  # a checksum of K/V after every copy; None: on the CPU

    def __new__(cls, *values: object, **fields: object) -> "Config":
        """ConfigError with the nearest name for an unknown field: __init__ would raise TypeError."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                raise ConfigError(f"field {short(name)} is unknown{_nearest(name, known)}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        self._fill_in()
        if not isinstance(self.model, (str, os.PathLike)) or not is_text(os.fspath(self.model)):
            raise ConfigError(f"model must be a name or a folder; got {short(self.model)}")
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if not isinstance(value, str) or value not in choices:
                what = f"{name} must be one of {', '.join(choices)}"
                raise ConfigError(f"{what}; got {short(value)}{_nearest(value, choices)}")
        for name, (least, most) in RANGES.items():
            if name not in _MAY_BE_NONE or getattr(self, name) is not None:
                _check_int(name, getattr(self, name), least, most)
        for name in ("watchdog_s", "itl_target_s"):
            value = getattr(self, name)
            if (name not in _MAY_BE_NONE or value is not None) and not (is_number(value, 0, LONGEST_S) and value > 0):
                raise ConfigError(f"{name} must be seconds, above 0 and up to {LONGEST_S:g}; got {short(value)}")
        for name in BOOLEANS:
            if not isinstance(value := getattr(self, name), bool):
                raise ConfigError(f"{name} must be True or False; got {short(value)}")
        if self.chunk_tokens % self.block_size:
            sizes = f"chunk_tokens ({self.chunk_tokens}) must be a multiple of block_size ({self.block_size})"
            raise ConfigError(f"{sizes}, so that a chunk hands off whole blocks")
        self._check_policy()
        self._check_bins()
        self._check_devices()
        _ = self.links
        self._make_plain()

    @property
    def colocated(self) -> bool:
        """True where each worker prefills and decodes; only `conditional` ones hand off, to each other."""
        return self.prefill_workers == 0

    @property
    def probes(self) -> bool:
        """Whether something is decided by estimates: these start from rates measured before the first request."""
        return bool(self.host_blocks) or self.conditional or self.itl_target_s is not None or self.policy != "fcfs"

    @property
    def sender(self) -> tuple[str, int]:
        """The role of the workers that hand K/V off, and how many there are."""
        return ("decode", self.decode_workers) if self.conditional else ("prefill", self.prefill_workers)

    def device_of(self, role: str, index: int) -> str:
        """The device of a worker, or of host memory."""
        if role == "decode" and self.colocated:
            return (self.prefill_device, self.decode_device)[index % 2]
        return {"prefill": self.prefill_device, "decode": self.decode_device}.get(role, "cpu")

    @property
    def links(self) -> tuple[Link, Link]:
        """The links of hop one, from the prefill device, and hop two, to the decode device."""
        pair = self.link if isinstance(self.link, (tuple, list)) else (self.link, self.link)
        if len(pair) != 2:
            raise ConfigError(f"link takes one link or a pair for the two hops; got {len(pair)} of them")
        return parse_link(pair[0], self.prefill_device), parse_link(pair[1], self.decode_device)

    def replace(self, **changes: object) -> "Config":
        """A copy with some fields changed."""
        return _checked({**vars(self), **changes})

    @classmethod
    def preset(cls, name: str, **changes: object) -> "Config":
        """A preset, with some fields changed."""
        if not isinstance(name, str) or name not in PRESETS:
            raise ConfigError(f"preset {short(name)} is unknown{_nearest(name, PRESETS)}; known: {', '.join(PRESETS)}")
        return _checked({**PRESETS[name], **changes})

    def _fill_in(self) -> None:
        """Fields at None whose default depends on the device."""
        on_gpu = isinstance(self.decode_device, str) and self.decode_device.startswith("cuda")
        for name, (on_cpu, otherwise) in _BY_DEVICE.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, otherwise if on_gpu else on_cpu)

    def _make_plain(self) -> None:
        """Turns numpy's whole numbers into ints, and `bins` into a tuple: a config is compared, hashed and saved."""
        for name, value in list(vars(self).items()):
            if is_whole(value):
                object.__setattr__(self, name, int(value))
        object.__setattr__(self, "bins", tuple(int(bound) for bound in self.bins))

    def _check_policy(self) -> None:
        policy = self.policy
        if isinstance(policy, str):
            if policy not in POLICIES:
                what = f"policy must be one of {', '.join(POLICIES)}, or an object; got {short(policy)}"
                raise ConfigError(what + _nearest(policy, POLICIES))
            return
        missing = [name for name in METHODS if not callable(getattr(policy, name, None))]
        if missing or isinstance(policy, type) or not is_text(getattr(policy, "name", None)):
            lacks = ", ".join(f"{name}()" for name in missing) or "a name, or is a class"
            raise ConfigError(f"policy must be a name or an object as in plan/policy.py; {short(policy)} lacks {lacks}")

    def _check_bins(self) -> None:
        if not isinstance(self.bins, (tuple, list)):
            raise ConfigError(f"bins must be a tuple of context lengths in tokens; got {short(self.bins)}")
        for bound in self.bins:
            _check_int("bins", bound, 1, MOST_TOKENS)
        if list(self.bins) != sorted(set(self.bins)):
            raise ConfigError(f"bins must rise: got {short(tuple(self.bins))}; for example (64, 128, 256, 512)")

    def _check_split(self, on_cpu: bool) -> None:
        """`sm_split` needs prefill and decode workers on one GPU; run/sm_split checks the number itself."""
        if on_cpu:
            why = "they are on CPU cores, which have none"
        elif self.colocated:
            why = "they take turns on one worker"
        elif self.prefill_device != self.decode_device:
            why = f"they are on {self.prefill_device} and {self.decode_device}"
        else:
            return
        what = f"sm_split={self.sm_split} gives decode that many SMs of the one GPU that it shares with prefill"
        raise ConfigError(f"{what}, but here {why}; leave it out")

    def _check_hand_off(self, on_cpu: bool) -> None:
        """The switches of a hand-off say something only where there is what they switch."""
        if not self.overlap and self.route == "bulk":
            bulk = "with route='bulk' nothing is handed off by layers, so no pass has a layer to wait in"
            raise ConfigError(f"overlap=False: {bulk}; leave it out, or take route='direct' or 'staged'")
        if not self.pinned and on_cpu:
            cores = "between CPU cores every copy is a copy in host memory, and there is no GPU to lock pages for"
            raise ConfigError(f"pinned=False: {cores}; leave it out, or take CUDA devices")

    def _check_devices(self) -> None:
        kinds = set()
        for name in ("prefill_device", "decode_device"):
            device = getattr(self, name)
            kind, colon, index = device.partition(":") if isinstance(device, str) else ("", "", "")
            if kind not in ("cpu", "cuda") or (colon and not index.isdecimal()) or (kind == "cpu" and colon):
                raise ConfigError(f'{name} must be "cpu", "cuda" or "cuda:N"; got {short(device)}')
            kinds.add(kind)
        if len(kinds) > 1:
            pair = f"prefill_device={self.prefill_device!r} with decode_device={self.decode_device!r}"
            raise ConfigError(f"{pair} is an impossible pair: take two CPU workers or GPUs for both")
        if "cpu" in kinds and (self.attention == "flash" or self.graphs):
            raise ConfigError("attention='flash' and graphs=True are a GPU's; here are CPU cores: leave them out")
        self._check_hand_off("cpu" in kinds)
        if self.sm_split is not None:
            _check_int("sm_split", self.sm_split, 1, 1024)
            self._check_split("cpu" in kinds)
        if self.conditional and not (self.colocated and self.decode_workers == 2):
            what = "conditional=True needs two workers that prefill and decode"
            got = f"prefill_workers={self.prefill_workers} and decode_workers={self.decode_workers}"
            raise ConfigError(f"{what}; got {got}: set them to 0 and 2")
        if self.colocated and self.prefill_device != self.decode_device and self.decode_workers == 1:
            pair = f"prefill_device={self.prefill_device!r} and decode_device={self.decode_device!r} differ"
            advice = "set both alike, or take two decode_workers, one for each"
            raise ConfigError(f"prefill_workers=0 puts prefill on the decode device, but {pair}; {advice}")


BOOLEANS = (
    *("mixed_passes", "conditional", "overlap", "pinned", "join_projections", "compile", "graphs", "peer_access"),
    *("fused_decode", "verify_kv"),
)

#: Defaults on the CPU and on a GPU.
_BY_DEVICE = {
    "block_size": (16, 256),
    "chunk_tokens": (256, 2048),
    "compile": (False, True),
    "graphs": (False, True),
    "fused_decode": (False, True),
    "verify_kv": (True, False),
}

MOST_TOKENS = 10_000_000  # of one request, or of a bin
MOST_BLOCKS = 10_000_000  # of a memory

CHOICES = {
    "route": ROUTES,
    "dtype": ("float32", "float16", "bfloat16"),
    "attention": ("auto", "flash", "sdpa", "plain"),
}

#: The least and the most of each count.
RANGES = {
    "prefill_workers": (0, 64),
    "decode_workers": (1, 64),
    "layers_per_copy": (1, 4096),
    "ring_slots": (1, 4096),
    "block_size": (1, 65_536),
    "chunk_tokens": (1, MOST_TOKENS),
    "max_batch": (1, 65_536),
    "threads": (1, 1024),
    "seed": (0, 2**62 - 1),
    "prefill_blocks": (1, MOST_BLOCKS),
    "decode_blocks": (1, MOST_BLOCKS),
    "host_blocks": (0, MOST_BLOCKS),
}
_MAY_BE_NONE = ("layers_per_copy", "prefill_blocks", "decode_blocks", "host_blocks", "itl_target_s")

_COLOCATED: dict[str, object] = {"prefill_workers": 0, "route": "bulk"}
_STAGED: dict[str, object] = {"route": "staged"}
_PAGED = {**_STAGED, "host_blocks": None}

#: Tokens that a memory holds where its size is None; an engine takes at most an eighth of the free memory for them.
DEFAULT_TOKENS = {"prefill_blocks": 4096, "decode_blocks": 8192, "host_blocks": 4096}

#: Each preset adds one idea to the one before it; `two_colocated` is the colocated rival on equal hardware.
PRESETS: dict[str, dict[str, object]] = {
    "baseline": {**_COLOCATED, "max_batch": 1, "chunk_tokens": 8192},
    "colocated": _COLOCATED,
    "split": {"route": "bulk"},
    "streamed": {"route": "direct"},
    "staged": _STAGED,
    "paged": _PAGED,
    "dynamic": {**_PAGED, "bins": (64, 128, 256, 512, 1024), "itl_target_s": 0.5},
    "two_colocated": {**_COLOCATED, "decode_workers": 2},
    "conditional": {"prefill_workers": 0, "decode_workers": 2, "route": "direct", "conditional": True},
}


def _checked(fields: dict[str, object]) -> Config:
    return Config(**fields)  # type: ignore[arg-type]  # __post_init__ checks them


def _nearest(name: object, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1) if isinstance(name, str) and len(name) < 100 else []
    return f"; nearest: {close[0]!r}" if close else ""


def _check_int(name: str, value: object, least: int, most: int) -> None:
    if not is_whole(value) or value < least:
        raise ConfigError(f"{name} must be a whole number, {least} or more; got {short(value)}")
    if value > most:
        raise ConfigError(f"{name} must be at most {most:,}; got {short(value)}")
