"""Stream memory operations: a stream waits for a number in memory or writes one, without a kernel (CUDA driver API,
cuStreamWaitValue64 and cuStreamWriteValue64). A graph captures them."""

import functools
from typing import Any

import torch
from torch import Tensor

from disagg.plan.errors import DisaggError
from disagg.run.gpu.sm_split import ask, load_driver

_driver = functools.cache(load_driver)


def wait_for(flag: Tensor) -> None:
    """Holds the current stream until this int64 on its device or in pinned memory is 1 or more."""
    _operate("Wait", flag, "WAIT_VALUE_GEQ")


def tell(flag: Tensor) -> None:
    """Writes 1 when the current stream comes here."""
    _operate("Write", flag, "WRITE_VALUE_DEFAULT")


def _operate(kind: str, flag: Tensor, how: str) -> None:
    driver: Any = _driver()
    flags = getattr(getattr(driver, f"CUstream{kind}Value_flags"), f"CU_STREAM_{how}")
    stream = torch.cuda.current_stream().cuda_stream
    ask(getattr(driver, f"cuStream{kind}Value64"), stream, flag.data_ptr(), 1, flags)


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
