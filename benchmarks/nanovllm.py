"""nano-vllm (MIT), the rival on one GPU: colocated, prefills first, Qwen3 on flash-attn; here with random weights.

git clone https://github.com/GeeeekExplorer/nano-vllm .peers/nanovllm      # measured at commit bb823b3
"""

import atexit
import contextlib
import gc
import importlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from disagg.plan.errors import EngineError
from disagg.plan.request import Request
from disagg.run.model.model import Model

FOLDER = Path(__file__).resolve().parents[1] / ".peers" / "nanovllm"
DEVICE = torch.device("cuda", 0)  # its own choice
LONGEST = 4096  # tokens of a request, as in its own bench
WORKSPACE = 6 << 30  # bytes of its warm-up pass, beside weights and K/V


class NanoAnswers(NamedTuple):
    """What one run of it gave."""

    tokens_per_s: float
    gaps_s: list[float]  # from one decode step's end to the next one's, once for each row


def reason_missing(model: Model) -> str | None:
    """Why it can't be compared here, in a sentence; None where it can."""
    if model.config.model_type != "qwen3":
        return f"nano-vllm runs Qwen3 alone, and {model.name} is a {model.config.model_type}"
    if not torch.cuda.is_available():
        return "nano-vllm needs a GPU that torch can use"
    if not (FOLDER / "nanovllm").is_dir():
        return f"nano-vllm's source is not in {FOLDER.parent.name}/{FOLDER.name} (its module says how to get it)"
    try:
        _module("nanovllm.engine.llm_engine")
    except ImportError as error:
        return f"nano-vllm can't be imported here: {error}"
    return None


def _module(name: str) -> Any:
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    return importlib.import_module(name)


def room_for_each(model: Model, tokens: int) -> tuple[int, int]:
    """Bytes of K/V that either engine gets for that many tokens where both share the GPU, and what is free now."""
    free, _ = torch.cuda.mem_get_info(DEVICE)
    room = (free - weight_bytes(model) - 2 * WORKSPACE) // 2
    return min(tokens * model.shape.token_bytes, room), free


def weight_bytes(model: Model) -> int:
    return sum(parameter.nbytes for parameter in model.module.parameters())


class NanoVllm:
    """Its engine in this process, with room for `kv_bytes` of K/V. Close it: it holds that memory."""

    def __init__(self, model: Model, kv_bytes: int) -> None:
        runner, llm = _module("nanovllm.engine.model_runner"), _module("nanovllm.llm")
        runner.load_model = draw_weights
        dtype = torch.get_default_dtype()
        free, total = torch.cuda.mem_get_info(DEVICE)
        used = total - free + weight_bytes(model) + WORKSPACE
        with tempfile.TemporaryDirectory() as folder:
            write_folder(Path(folder), model)
            try:
                self._engine = llm.LLM(folder, max_model_len=LONGEST,
                                       gpu_memory_utilization=min(0.97, (used + kv_bytes) / total))  # fmt: skip
            finally:  # it sets torch's defaults for the whole process
                torch.set_default_device(None)
                torch.set_default_dtype(dtype)

    def serve(self, requests: list[Request]) -> NanoAnswers:
        """All at once, sampled at its own bench's temperature, the end of sequence ignored."""
        sampling = _module("nanovllm.sampling_params").SamplingParams
        engine, made = self._engine, 0
        gaps: list[float] = []
        for request in requests:
            params = sampling(temperature=0.6, ignore_eos=True, max_tokens=request.max_new_tokens)
            engine.add_request(list(request.prompt), params)
        start, before = time.perf_counter(), None
        while not engine.is_finished():
            ended, count = engine.step()
            made += sum(len(tokens) for _, tokens in ended)
            if count < 0:  # a decode step of that many rows
                now = time.perf_counter()
                gaps += [] if before is None else [now - before] * -count
                before = now
        took = time.perf_counter() - start
        wanted = sum(request.max_new_tokens for request in requests)
        if made != wanted:
            raise EngineError(f"nano-vllm gave {made} new tokens where {wanted} were asked; its figure would be wrong")
        return NanoAnswers(made / took, gaps)

    def close(self) -> None:
        engine, self._engine = self._engine, None
        atexit.unregister(engine.exit)
        with contextlib.suppress(AttributeError):
            engine.exit()
        del engine
        gc.collect()
        torch.cuda.empty_cache()


@torch.no_grad()
def draw_weights(module: torch.nn.Module, path: str) -> None:
    """In place of its `load_model`: matrices at random, norms as they are made (ones)."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0.0, 0.02)


def write_folder(folder: Path, model: Model) -> None:
    """The files it asks for: the model's config, and a tokenizer of two words, since prompts come as ids."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    config = {k: v for k, v in model.config.to_dict().items() if "attn_implementation" not in k}
    config["dtype"] = str(model.shape.dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config))
    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>").save_pretrained(folder)
