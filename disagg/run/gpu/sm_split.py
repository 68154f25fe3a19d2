"""One GPU split by SMs: decode's kernels run on one part, prefill's on the rest, and the parts are disjoint.

A part is a green context of the driver with its own streams; memory, kernels and events belong to the primary context.
`torch.cuda.green_contexts` cuts each context from the whole GPU, so two of them would overlap.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from disagg.plan.errors import ConfigError, DisaggError, EngineError

GRAIN = 8  # SMs: least part and step since Hopper, and a multiple of older ones; the driver reports them since CUDA 13
OLDEST = 12050  # CUDA 12.5, the first with cuGreenCtxStreamCreate
REMEDY = "leave sm_split at None: the two workers then share the SMs through streams alone"

_SMS: dict[int, int] = {}  # stream of an open part → SMs of the part


def choices(sms: int, least: int = GRAIN, step: int = GRAIN) -> range:
    """SMs that decode can have: a multiple of `step`, with at least `least` on both sides."""
    return range(-(-least // step) * step, sms - least + 1, step)


def check_sizes(sms: int, decode: int, least: int = GRAIN, step: int = GRAIN) -> None:
    """ConfigError if the GPU can't be cut into `decode` SMs for decode and the others for prefill."""
    possible = choices(sms, least, step)
    if not possible:
        raise ConfigError(f"sm_split={decode}: this GPU's {sms} SMs make no two parts of {least} or more; {REMEDY}")
    if decode not in possible:
        nearest = min(possible, key=lambda count: abs(count - decode))
        raise ConfigError(
            f"sm_split={decode}: of this GPU's {sms} SMs decode can have {possible[0]} to {possible[-1]} in steps of "
            f"{step}, so that prefill keeps {least} or more; take {nearest}, or {REMEDY}"
        )


def check_split(device: torch.device, decode: int) -> None:
    """ConfigError or EngineError if this GPU can't be cut there."""
    gpu = Whole.of(load_driver(), device)
    check_sizes(gpu.sms, decode, gpu.least, gpu.step)


def split_gpu(device: torch.device, decode: int) -> dict[str, "SMPartition"]:
    """The two parts by role: decode's group, and for prefill the rest of the same cut."""
    check_split(device, decode)
    driver = load_driver()
    flags = 0  # bit 0 would allow smaller parts, on which kernels with SM clusters do not run
    whole = Whole.of(driver, device).resource
    (group,), _, rest = ask(driver.cuDevSmResourceSplitByCount, 1, whole, flags, decode)
    parts: dict[str, SMPartition] = {}
    try:
        for role, resource in (("decode", group), ("prefill", rest)):
            parts[role] = SMPartition(driver, device, resource)
    except BaseException:
        for part in parts.values():
            part.close()
        raise
    return parts


class SMPartition:
    """Some SMs of a GPU, and the streams whose kernels and graphs run only on them.

    Before `close`, threads that use its streams must end and their graphs and pinned memory must be freed, since torch
    records an event on the stream when it frees that memory.
    """

    def __init__(self, driver: Any, device: torch.device, resource: Any) -> None:
        self.device, self.sms, self._driver = device, resource.sm.smCount, driver
        described = ask(driver.cuDevResourceGenerateDesc, [resource], 1)
        flags = int(driver.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM)  # the driver requires it
        self._context = ask(driver.cuGreenCtxCreate, described, ask(driver.cuDeviceGet, _index(device)), flags)
        self._streams: list[Any] = []  # the driver's streams

    def stream(self, priority: int = 0) -> torch.cuda.Stream:
        """A new stream on these SMs; negative priorities go first among the part's streams."""
        flags = int(self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        stream = ask(self._driver.cuGreenCtxStreamCreate, self._context, flags, priority)
        self._streams.append(stream)
        _SMS[int(stream)] = self.sms
        return torch.cuda.ExternalStream(int(stream), device=self.device)

    def close(self) -> None:
        """Closes streams, then their context; ignores a second call and errors of the driver."""
        for stream in self._streams:
            _SMS.pop(int(stream), None)  # the next stream may get this number
            self._driver.cuStreamSynchronize(stream)
            self._driver.cuStreamDestroy(stream)
        self._streams.clear()
        if self._context is not None:
            self._driver.cuGreenCtxDestroy(self._context)
            self._context = None


def sm_count(device: torch.device) -> int:
    """SMs for this thread's kernels on a GPU: those of its worker's part, or all."""
    stream = torch.cuda.current_stream(device).cuda_stream
    return _SMS.get(stream) or torch.cuda.get_device_properties(device).multi_processor_count


def describe() -> str:
    """One sentence for `doctor`: whether the first GPU can be split, and why not."""
    if not torch.cuda.is_available():
        return "not here: sm_split cuts a GPU in two, and torch finds none"
    try:
        gpu = Whole.of(load_driver(), torch.device("cuda", 0))
        possible = choices(gpu.sms, gpu.least, gpu.step)
        check_sizes(gpu.sms, possible[0] if possible else gpu.least, gpu.least, gpu.step)
    except DisaggError as error:
        return f"not here: {error}"
    return (
        f"possible: sm_split={possible[0]} to {possible[-1]} in steps of {gpu.step} for decode, the rest of cuda:0's "
        f"{gpu.sms} SMs for prefill"
    )


class Whole(NamedTuple):
    """The SMs of a GPU before a cut: the driver's record, their count, and the least part and step of a cut."""

    resource: Any
    sms: int
    least: int
    step: int

    @classmethod
    def of(cls, driver: Any, device: torch.device) -> "Whole":
        kind = driver.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
        resource = ask(driver.cuDeviceGetDevResource, ask(driver.cuDeviceGet, _index(device)), kind)
        least, step = (getattr(resource.sm, name, 0) for name in ("minSmPartitionSize", "smCoscheduledAlignment"))
        return cls(resource, resource.sm.smCount, least or GRAIN, step or GRAIN)


def load_driver() -> Any:
    """cuda.bindings' driver module, initialised; ConfigError if it is missing, or too old for green contexts."""
    try:
        from cuda.bindings import driver  # comes with torch's CUDA builds
    except ImportError as error:
        raise ConfigError(
            f"sm_split asks the CUDA driver through cuda.bindings, and that is not here ({error}): "
            f"`pip install cuda-bindings`, or {REMEDY}"
        ) from None
    ask(driver.cuInit, 0)
    version = ask(driver.cuDriverGetVersion)
    if version < OLDEST:
        raise ConfigError(
            f"sm_split needs green contexts, which drivers have from CUDA 12.5 on; this driver is of CUDA "
            f"{version // 1000}.{version % 1000 // 10}. Update it, or {REMEDY}"
        )
    return driver


def ask(call: Callable, *arguments: Any) -> Any:
    """A driver call's result: None, one value or a tuple; EngineError with the driver's message if it fails."""
    try:
        error, *found = call(*arguments)
    except RuntimeError as missing:  # no such library, or no such function in it
        raise EngineError(f"sm_split: {call.__name__} can't be called ({missing}); {REMEDY}") from None
    if error:
        raise EngineError(f"sm_split: {call.__name__} failed with {error.name}; {REMEDY}")
    return found[0] if len(found) == 1 else tuple(found)


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index
