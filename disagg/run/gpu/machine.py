"""Hardware and software that a measured figure depends on, without the machine's name."""

import os
import platform
import subprocess
from functools import cache
from pathlib import Path

import torch


@cache
def machine() -> dict:
    model = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0  # a driver may count GPUs that CUDA can't use
    gpus = [torch.cuda.get_device_name(index) for index in range(count)]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    found = {"cpu": model, "cores": os.cpu_count(), "memory_gb": round(memory / 2**30), "gpus": gpus}
    return found | {"capability": torch.backends.cpu.get_cpu_capability(), "system": platform.system()}


def in_words() -> str:
    """The machine for a caption."""
    found = machine()
    gpus = f", {', '.join(found['gpus'])}" if found["gpus"] else ""
    return f"{found['cores']} cores of {found['cpu']}, {found['memory_gb']} GB{gpus}"


def gpu_in_words() -> str:
    """Name and driver of the first GPU, torch and its CUDA; torch alone without a GPU."""
    if not torch.cuda.is_available():
        return f"no GPU, torch {torch.__version__}"
    return f"{torch.cuda.get_device_name(0)}, driver {_driver()}, torch {torch.__version__}"


def _driver() -> str:
    """The number of NVIDIA's driver, if nvidia-smi prints it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        printed = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return printed[0] if printed else "unknown"
