"""Refuses a model folder that would run code, unpickle, read outside of itself, or promise more than its files hold.

All of it before anything is loaded and before memory is taken.
"""

import itertools
import json
import os
import re
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from disagg.plan.checks import short
from disagg.plan.errors import ModelError

MAX_HEADER_BYTES = 16 * 2**20  # a table of 100,000 tensors; parsed, it takes up to 25 times as much
MAX_JSON_BYTES = 8 * 2**20
MAX_BUFFER_BYTES = 2**30
MAX_COUNT = 10_000  # layers, heads, experts: each of them is a Python object
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".pickle")
BITS = {"F64": 64, "I64": 64, "F32": 32, "I32": 32, "BF16": 16, "F16": 16, "I16": 16, "U8": 8, "I8": 8, "BOOL": 8}
CONFIGS = ("config.json", "tokenizer_config.json", "generation_config.json")
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"

_COUNTED = re.compile(r"(layer|head|expert)s?$")


def check_folder(folder: Path) -> None:
    """Refuse a model folder that would execute code, unpickle, or whose tensors do not fit their files."""
    if not folder.is_dir():
        raise ModelError(f"there is no folder '{folder}'; a model is 'smollm2', 'tiny' or a folder that holds one")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder.name}: no config.json in this folder; a model is 'smollm2', 'tiny' or a folder")
    for path in sorted(folder.iterdir()):
        if not path.is_file() and not (path.is_dir() and path.suffix not in (".safetensors", ".json")):
            raise ModelError(f"{path.name} is not a file that can be read; remove it from the folder")
    for name in CONFIGS:
        if (folder / name).is_file():
            _check_config(name, read_json(folder / name))
    if (folder / "adapter_config.json").exists():
        raise ModelError("adapter_config.json: adapters point to another model's folder; merge them into one first")
    index = _read_index(folder)
    for path in weight_files(folder):
        _check_tensors(path)
        if index is not None:
            _check_shard(path, index)


def check_promise(folder: Path, config: Any) -> None:
    """Refuse a config that declares far more weights than the files hold: memory would be taken for all of them."""
    from transformers import AutoModelForCausalLM

    entries = {name: entry for path in weight_files(folder) for name, entry in _entries(path).items()}
    layers, held = getattr(config, "num_hidden_layers", 0), count_weights(folder)
    if layers > len(entries):
        raise ModelError(f"config.json declares {layers:,} layers, but the safetensors hold {len(entries):,} tensors")
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config)
    declared = sum(parameter.numel() for parameter in module.parameters())
    if declared > 2 * held:  # twice: tied weights are once in a file
        raise ModelError(f"config.json declares {declared:,} weights, but the safetensors hold {held:,}")
    base = module.base_model_prefix
    for name in sorted(entries):
        if f"{base}.{name}" in entries:
            raise ModelError(f"the safetensors hold {short(name)} twice, with and without '{base}.' before it")
    nbytes = sum(buffer.nbytes for buffer in module.buffers())  # masks and tables of positions, which no file holds
    if nbytes > MAX_BUFFER_BYTES:
        raise ModelError(f"config.json asks for {nbytes:,} bytes of tables; at most {MAX_BUFFER_BYTES:,} are made")


def count_weights(folder: Path) -> int:
    """Numbers in the files that are loaded, from their headers."""
    return sum(_count(entry["shape"]) for path in weight_files(folder) for entry in _entries(path).values())


def read_json(path: Path) -> dict:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelError(f"{path.name} holds more than {MAX_JSON_BYTES:,} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except ModelError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path.name} is not readable JSON: {error}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path.name} holds a {type(content).__name__}, not an object")
    return content


def _check_config(name: str, content: dict) -> None:
    for key, value in _fields(content):
        if key == "auto_map":
            raise ModelError(f"{name} has auto_map: this model brings its own Python code, which is never run")
        if key.endswith("_implementation") and "/" in str(value):
            raise ModelError(f"{name} has {key} {short(value)}: code from elsewhere is never fetched or run")
        if key == "transformers_weights" and value is not None:
            raise ModelError(f"{name} has transformers_weights {short(value)}: weights are the folder's safetensors")
        names_a_file = key.endswith("_file") and key != "special_tokens_map_file" and isinstance(value, str)
        if names_a_file and (os.path.basename(str(value)) != value or value == ".."):
            raise ModelError(f"{name} has {key} {short(value)}, which leads out of the folder")
        if _COUNTED.search(key) and type(value) is int and value > MAX_COUNT:
            raise ModelError(f"{name} has {key} {short(value)}; more than {MAX_COUNT:,} are not built")


def _fields(content: dict | list) -> Iterator[tuple[str, object]]:
    """(name, value) of the object, and of those in it."""
    for name, value in content.items() if isinstance(content, dict) else ((None, value) for value in content):
        if name is not None:
            yield name, value
        if isinstance(value, dict | list):
            yield from _fields(value)


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers will load, and no other: those that the index names, else model.safetensors."""
    index = _read_index(folder)
    if index is not None:
        names = sorted(set(index.values()))
        if names != [WHOLE] and (folder / WHOLE).is_file():
            raise ModelError(f"{WHOLE} stands beside {INDEX}, which names other files: remove the outdated one")
        return [folder / name for name in names]
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    found = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", *PICKLES))
    if any(name.endswith(".safetensors") for name in found):
        raise ModelError(f"{folder.name}: neither {WHOLE} nor {INDEX}, which says what of {short(found)} is loaded")
    held = f"only {', '.join(found)}, which are pickles and can execute code" if found else "none"
    raise ModelError(f"{folder.name}: weights must be safetensors; found {held}. Save it with safe_serialization.")


def _read_index(folder: Path) -> dict[str, str] | None:
    """Tensor → file of this folder, where there is an index."""
    if not (folder / INDEX).is_file():
        return None
    found = read_json(folder / INDEX).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise ModelError(f"{INDEX} has no weight_map")
    names = {path.name for path in folder.glob("*.safetensors")}
    for tensor, name in found.items():
        if name not in names:
            raise ModelError(f"{INDEX}: tensor {short(tensor)} is sent to {short(name)}, no safetensors of this folder")
    return found


def _check_shard(path: Path, index: dict[str, str]) -> None:
    """A shard holds what the index sends to it and nothing else: transformers would load all that it holds."""
    held, sent = _entries(path).keys(), {tensor for tensor, name in index.items() if name == path.name}
    for tensor in sorted(held ^ sent):
        if tensor not in held:
            raise ModelError(f"{path.name} lacks tensor {short(tensor)}, which {INDEX} sends to it")
        place = f"sends to {index[tensor]}" if tensor in index else "does not name"
        raise ModelError(f"{path.name} holds tensor {short(tensor)}, which {INDEX} {place}: save the model anew")


def read_header_bytes(path: Path) -> bytes:
    """The JSON header of a safetensors file, its stated length checked before anything is read."""
    size, limit = path.stat().st_size, MAX_HEADER_BYTES
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 0 < length <= min(limit, size - 8):
            raise ModelError(
                f"{path.name}: header of {length:,} bytes in a file of {size:,}; at most {limit:,} are read"
            )
        return file.read(length)


def _check_tensors(path: Path) -> None:
    """Every tensor's bytes must lie inside the file, be its own, and as many as its shape and dtype say."""
    room = path.stat().st_size - 8 - len(read_header_bytes(path))
    entries = _entries(path)
    for name, entry in entries.items():
        _check_tensor(path.name, name, entry, room)
    spans = sorted((*entry["data_offsets"], name) for name, entry in entries.items())
    for (_, stop, before), (start, _, name) in itertools.pairwise(spans):
        if start < stop:
            raise ModelError(f"{path.name}: tensor {short(name)} begins inside of tensor {short(before)}")


def _entries(path: Path) -> dict[str, dict]:

    def no_name_twice(pairs: list[tuple[str, object]]) -> dict:
        found = dict(pairs)
        if len(found) < len(pairs):
            (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
            raise ModelError(f"{path.name}: the header holds {short(name)} twice")
        return found

    header = read_header_bytes(path)
    try:
        tensors = json.loads(header, object_pairs_hook=no_name_twice)
        return {name: entry for name, entry in tensors.items() if name != "__metadata__"}
    except ModelError:
        raise
    except (ValueError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path.name}: the header is not a table of tensors ({short(error)})") from None


def _check_tensor(file: str, name: str, entry: Any, room: int) -> None:
    """One entry of a header; offsets count from the header's end, behind which there are `room` bytes."""
    where = f"{file}: tensor {name if len(name) < 200 and name.isprintable() else short(name)}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise ModelError(f"{where} has {short(entry)}, not dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ModelError(f"{where} has dtype {short(dtype)}; quantised formats are not read")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise ModelError(f"{where} has shape {short(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(offset) is int for offset in offsets):
        raise ModelError(f"{where} has data_offsets {short(offsets)}")
    start, stop = offsets
    if not 0 <= start <= stop <= room or stop - start != _count(shape) * BITS[dtype] // 8:
        raise ModelError(f"{where} {short(shape)} {dtype} lies at {short(start)}..{short(stop)} of {room:,} bytes")


def _count(shape: list[int]) -> int:
    """Elements; what no file can hold is not multiplied out."""
    count = 0 if 0 in shape else 1
    for size in shape:
        count *= size
        if count > 2**62:
            break
    return count
