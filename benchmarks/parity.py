"""Parity: logits of every preset, through `Engine.serve`, against the untouched Hugging Face model, one at a time.

The reference's greedy tokens are forced into the preset. A token counts as wrong where the preset's argmax differs
although the reference's two best logits are more than 1e-3 apart.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Say
from benchmarks.robustness.architectures import make_tiny
from disagg.plan.config import PRESETS, Config
from disagg.plan.errors import ModelError
from disagg.plan.request import Request
from disagg.run.engine import Engine
from disagg.run.model.model import Model, load_model
from disagg.show.example_prompts import prompts
from disagg.show.report import Row

ACCEPTED = ("qwen2", "qwen3", "mistral", "gemma2", "gpt2", "phi3", "olmo2")
REFUSED = ("gpt_neo", "gptj", "bloom", "falcon", "deepseek_v3", "mamba")
NEAR_TIE = 1e-3  # a smaller gap between the reference's two best logits can flip with rounding


@dataclass
class ReferenceAnswer:
    """The reference's greedy answer to one prompt."""

    prompt: list[int]
    tokens: list[int]
    logits: torch.Tensor  # [new tokens, vocab]


@dataclass
class Parity:
    """What one preset's logits differ by: at most, in wrong tokens, and in ties that flipped."""

    largest: float = 0.0
    wrong: int = 0
    flipped_ties: int = 0
    positions: int = 0

    def add(self, found: torch.Tensor, answer: ReferenceAnswer) -> None:
        """Compares logits [new tokens, vocab] with the reference's."""
        off = (found - answer.logits).abs().nan_to_num(nan=torch.inf)  # NaN is no number that `max` would keep
        self.largest = max(self.largest, float(off.max()))
        best = answer.logits.topk(2).values
        clear = (best[:, 0] - best[:, 1]) > NEAR_TIE
        differs = found.argmax(-1) != answer.logits.argmax(-1)
        self.wrong += int((differs & clear).sum())
        self.flipped_ties += int((differs & ~clear).sum())
        self.positions += len(found)


@torch.inference_mode()
def reference_answers(model: Model, inputs: list[list[int]], new_tokens: int) -> list[ReferenceAnswer]:
    """Greedy answers of the untouched model, one prompt at a time."""
    module, answers = model.reference(), []
    for prompt in inputs:
        cache, ids, rows = None, torch.tensor([prompt]), []
        for _ in range(new_tokens):
            out = module(input_ids=ids, past_key_values=cache, use_cache=True)
            cache, row = out.past_key_values, out.logits[0, -1].float()
            rows.append(row)
            ids = row.argmax().view(1, 1)
        logits = torch.stack(rows)
        answers.append(ReferenceAnswer(prompt, logits.argmax(-1).tolist(), logits))
    return answers


@torch.inference_mode()
def continuations(module: Any, texts: list[list[int]], new_tokens: int) -> list[ReferenceAnswer]:
    """A Hugging Face module's logits before each of the last `new_tokens` of every text, one forward a text."""
    answers = []
    for ids in texts:
        first = len(ids) - new_tokens
        logits = module(input_ids=torch.tensor([ids], device=module.device), use_cache=False).logits
        kept = logits[0, first - 1 : -1].to(torch.float32, copy=True)  # a view would keep those of the whole text
        answers.append(ReferenceAnswer(ids[:first], ids[first:], kept))
    return answers


def forced(answers: list[ReferenceAnswer]) -> list[Request]:
    """The answers' tokens, fed to an engine that keeps its logits."""
    return [Request(a.prompt, len(a.tokens), force_ids=a.tokens, keep_logits=True) for a in answers]


def compare(engine: Engine, answers: list[ReferenceAnswer], before: Parity | None = None) -> Parity:
    """Serves the forced answers and compares, on top of what was compared before; all answers must be complete."""
    parity, run = before or Parity(), engine.serve(forced(answers))
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # workers copy the rows they keep on streams of their own
    for result, answer in zip(run.results, answers, strict=True):
        if result.finish_reason != "length":
            raise RuntimeError(f"request {result.request} ended as {result.finish_reason}: {result.error}")
        parity.add(torch.stack([row.float() for row in result.logits]), answer)
    return parity


def _write_lossily(
    write: Callable[[range, torch.Tensor, torch.Tensor], None], layers: range, blocks: torch.Tensor, data: torch.Tensor
) -> None:
    data = data.clone()
    if layers.start == 0:
        data[0, :, 0] = 0
    write(layers, blocks, data)


def drop_one_block(engine: Engine) -> None:
    """The control: one block of K/V is lost on its way onto the decode device, in one layer of every hand-off."""
    for name, cache in engine.executor.transfers.caches.items():
        if name.role == "decode":
            lossy = partial(_write_lossily, cache.write_blocks)
            vars(cache)["write_blocks"] = lossy  # this engine alone loses a block


def smollm2_rows(say: Say, count: int, new_tokens: int) -> Iterator[Row]:
    """Parity of every preset on the embedded model, and the control that shows that the comparison can fail."""
    loaded = load_model("smollm2")
    lengths = [16 + (index * 37) % 180 for index in range(count)]
    say(f"reference: {count} prompts × {new_tokens} tokens, one at a time")
    torch.set_num_threads(1)
    answers = reference_answers(loaded, prompts(loaded, lengths), new_tokens)
    for preset in PRESETS:
        say(f"preset {preset}")
        with Engine(Config.preset(preset, model=loaded.name), model=loaded) as engine:
            parity = compare(engine, answers)
        note = f"{parity.positions} positions, {parity.flipped_ties} near ties flipped"
        yield Row(f"parity_max_logit_diff[{preset}]", parity.largest, "logits", 5e-4, parity.positions, note)
        yield Row(f"parity_wrong_tokens[{preset}]", parity.wrong, "tokens", 0, parity.positions, "gap > 1e-3")
    say("control: one block dropped")
    with Engine(Config.preset("streamed", model=loaded.name, verify_kv=False), model=loaded) as engine:
        drop_one_block(engine)
        control = compare(engine, answers[: max(1, count // 8)])
    note = "one block of layer 0 zeroed on arrival; must exceed the limit tenfold"
    yield Row("parity_control_logit_diff", control.largest, "logits", 5e-3, control.positions, note, at_most=False)


def suite(say: Say, prompts: int, new_tokens: int) -> Iterator[Row]:
    """The embedded model on every preset, then other architectures as tiny random models."""
    yield from smollm2_rows(say, prompts, new_tokens)
    yield from architecture_rows(say)


def architecture_rows(say: Say, count: int = 8, new_tokens: int = 12, accepted: Iterable[str] = ACCEPTED) -> list[Row]:
    """Parity of other architectures, as tiny random models, on every preset; and those that must be refused."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in accepted:
            say(f"architecture {name}")
            model = load_model(str(make_tiny(name, Path(folder) / name)))
            inputs = [[(7 * index + 13 * place) % 250 for place in range(9 + 5 * index)] for index in range(count)]
            answers = reference_answers(model, inputs, new_tokens)
            spread = float(torch.cat([answer.logits for answer in answers]).std())
            total = Parity()
            for preset in PRESETS:
                sizes = dict(chunk_tokens=32, decode_blocks=128, prefill_blocks=128)
                config = Config.preset(preset, model=model.name, **sizes)
                config = replace(config, host_blocks=64) if config.host_blocks is None else config
                with Engine(config, model=model) as engine:
                    compare(engine, answers, total)
            note = f"all presets, share of the logits' standard deviation {spread:.2g}"
            share = total.largest / spread
            rows.append(Row(f"parity_max_logit_diff[{name}]", share, "of std", 1e-4, total.positions, note))
            rows.append(Row(f"parity_wrong_tokens[{name}]", total.wrong, "tokens", 0, total.positions))
        rows.append(refusal_row(say, Path(folder)))
    return rows


def refusal_row(say: Say, folder: Path) -> Row:
    """Architectures that the paged path would compute wrongly, or not at all."""
    reasons = []
    for name in REFUSED:
        say(f"architecture {name}, to be refused")
        try:
            load_model(str(make_tiny(name, folder / name)))
        except ModelError as error:
            reasons.append(f"{name}: {error}")
    return Row("refused_models", len(reasons), f"of {len(REFUSED)}", len(REFUSED), 1, "; ".join(reasons), at_most=False)
