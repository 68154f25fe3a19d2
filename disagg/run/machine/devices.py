"""What stands on which device: the devices that a config names, and the memories of K/V on them."""

import os

import torch

from disagg.monitor.seams import Seams
from disagg.plan.commands import Worker
from disagg.plan.config import Config
from disagg.plan.errors import ConfigError
from disagg.run.kv_cache import KVCache, KVShape

LEAST_THREADS = 2  # that any machine may take: a lesson compares one with two


def check_devices(config: Config) -> None:
    """ConfigError where a device or a core is not there or can't be split, or a name stands in place of a Config."""
    if not isinstance(config, Config):
        raise ConfigError(f'Engine takes a Config, as in Engine(Config.preset("dynamic")); got {config!r}')
    cores = os.cpu_count() or 1
    if config.threads > max(cores, LEAST_THREADS):
        raise ConfigError(
            f"threads={config.threads}: this machine has {cores} cores, and more threads than cores slow each other "
            f"down; take {max(cores, LEAST_THREADS)} or fewer"
        )
    for name in ("prefill_device", "decode_device"):
        device = getattr(config, name)
        count = torch.cuda.device_count() if device.startswith("cuda") else 1
        index = int(device.partition(":")[2] or 0)
        if index >= count:
            raise ConfigError(f'{name}={device!r}: this machine has {count} CUDA devices; take "cpu" or a lower index')
    if config.sm_split is not None:
        from disagg.run.gpu.sm_split import check_split

        check_split(torch.device(config.decode_device), config.sm_split)


def make_caches(config: Config, shape: KVShape, spare: bool, seams: Seams) -> dict[Worker, KVCache]:
    """The memory of each worker, and host memory where requests are paged. `spare`: decode gets one block more than
    its pool knows of, where the rows that pad a graph write."""
    assert config.decode_blocks and config.prefill_blocks
    sizes = {Worker("decode", i): config.decode_blocks + spare for i in range(config.decode_workers)}
    sizes |= {Worker("prefill", i): config.prefill_blocks for i in range(config.prefill_workers)}
    if config.host_blocks:
        sizes[Worker("host", 0)] = config.host_blocks
    for name in sizes:
        seams.allocate(f"the KV cache of {name}")
    pinned = config.pinned and config.decode_device != "cpu"
    caches: dict[Worker, KVCache] = {}
    try:
        for name, blocks in sizes.items():
            at = config.device_of(*name)
            caches[name] = KVCache(shape, blocks, config.block_size, at, pinned and name.role == "host")
    except BaseException:
        caches.clear()  # a notebook keeps the last error, an error its frames, and they would keep what was allocated
        raise
    return caches
