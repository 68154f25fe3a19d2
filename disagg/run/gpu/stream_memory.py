"""What the driver does on a stream without a kernel: it waits for a number in memory (cuStreamWaitValue64), writes one
(cuStreamWriteValue64) or copies rows of bytes (cuMemcpy2DAsync). Addresses are a device's or of pinned memory."""

import functools
from collections.abc import Callable
from typing import Any

import torch

from disagg.plan.errors import DisaggError, EngineError
from disagg.run.gpu.sm_split import ask, load_driver

REFUSALS = {"CUDA_ERROR_INVALID_VALUE", "CUDA_ERROR_NOT_SUPPORTED", "CUDA_ERROR_OUT_OF_MEMORY"}
MOST_PITCH = (1 << 31) - 1  # bytes from row to row for a copy engine
_driver = functools.cache(load_driver)


def wait_for(flag: int, stream: torch.cuda.Stream) -> None:
    """Holds the stream until this int64 is 1 or more."""
    _order(_driver().cuStreamWaitValue64, stream.cuda_stream, flag, 1, _flags()[0])


def tell(flag: int, stream: torch.cuda.Stream) -> None:
    """Writes 1 when the stream comes here."""
    _order(_driver().cuStreamWriteValue64, stream.cuda_stream, flag, 1, _flags()[1])


class RowCopy:
    """Rows of `width` bytes that a copy engine carries, with how far they lie apart at both ends."""

    def __init__(self, target_pitch: int, source_pitch: int, width: int) -> None:
        driver, self.width = _driver(), width
        copy = self._copy = driver.CUDA_MEMCPY2D()
        copy.dstMemoryType = copy.srcMemoryType = driver.CUmemorytype.CU_MEMORYTYPE_UNIFIED
        copy.dstPitch, copy.srcPitch, copy.WidthInBytes = target_pitch, source_pitch, width

    def launch(self, target: int, source: int, rows: int, stream: torch.cuda.Stream) -> None:
        """From address to address."""
        self._copy.dstDevice, self._copy.srcDevice, self._copy.Height = target, source, rows
        _order(_driver().cuMemcpy2DAsync, self._copy, stream.cuda_stream)


def _order(call: Callable, *arguments: Any) -> None:
    """EngineError if the driver refuses, with advice where it is this call that it refuses."""
    [error] = call(*arguments)
    if error:
        failed = f"the driver's {call.__name__} failed with {error.name}"
        advice = "`graphs=False` launches passes layer by layer, without it"
        raise EngineError(f"{failed}; {advice}" if error.name in REFUSALS else f"CUDA error: {failed}")


@functools.cache
def _flags() -> tuple[Any, Any]:
    driver = _driver()
    wait, write = driver.CUstreamWaitValue_flags, driver.CUstreamWriteValue_flags
    return wait.CU_STREAM_WAIT_VALUE_GEQ, write.CU_STREAM_WRITE_VALUE_DEFAULT


def reason_against(device: torch.device) -> str | None:
    """Why streams of this GPU can't, in words; None where they can."""
    try:
        driver = _driver()
        able = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS
        if ask(driver.cuDeviceGetAttribute, able, ask(driver.cuDeviceGet, device.index or 0)):
            return None
    except (DisaggError, AttributeError):
        return "its driver can't be asked, which takes cuda.bindings and CUDA 12.5"
    return "its driver has no stream memory operations on 64 bits"


def describe() -> str:
    """For `doctor`: whether layers leave captured passes by themselves on the first GPU."""
    if not torch.cuda.is_available():
        return "not here: passes are captured on a GPU, and torch finds none"
    reason = reason_against(torch.device("cuda", 0))
    if reason is None:
        return "possible: layers leave a captured pass by themselves"
    return f"not on cuda:0: {reason}; a pass that hands layers off is launched layer by layer"
