"""What a model folder asks for and does not get here: a warning when it is loaded."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from disagg.plan.checks import short
from disagg.plan.errors import ModelWarning
from disagg.run.model.folder_checks import read_json
from disagg.run.model.text import Text

#: Fields of generation_config.json that change a greedy answer, and the values that ask for nothing.
GREEDY: dict[str, tuple] = {
    "repetition_penalty": (1,), "encoder_repetition_penalty": (1,), "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,), "bad_words_ids": ([],), "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],), "forced_bos_token_id": (), "forced_eos_token_id": (), "min_length": (0,),
    "min_new_tokens": (0,), "exponential_decay_length_penalty": (), "sequence_bias": ({}, []), "guidance_scale": (1,),
    "num_beams": (1,), "penalty_alpha": (0,), "dola_layers": (), "constraints": ([],), "force_words_ids": ([],),
    "watermarking_config": (), "token_healing": (False,), "stop_strings": ([], ""), "max_time": (),
    "num_return_sequences": (1,),
}  # fmt: skip
#: Each Request brings its own of these and the following.
LENGTH: dict[str, tuple] = {"max_new_tokens": (), "max_length": (20,)}
SAMPLING: dict[str, tuple] = {
    "do_sample": (False,), "temperature": (1,), "top_k": (0, 50), "top_p": (1,), "min_p": (0,), "top_h": (),
    "typical_p": (1,), "epsilon_cutoff": (0,), "eta_cutoff": (0,),
}  # fmt: skip


def warn_of_settings(folder: Path, module: Any, text: Text) -> None:
    """One ModelWarning for a chat template that is not rendered, and one for settings that are not followed."""
    if text.drops_template:
        template = (
            f"{folder.name}: its chat template is not rendered, since only a pinned file's is; a prompt goes in as "
            "plain text. For a chat, render it with the model's own tokenizer and pass its token ids as the prompt"
        )
        warnings.warn(template, ModelWarning, stacklevel=3)
    settings = dict(vars(getattr(module, "generation_config", None) or SimpleNamespace()))
    if (folder / "generation_config.json").is_file():
        settings |= read_json(folder / "generation_config.json")
    found = []
    if changed := _in_words(settings, GREEDY):
        found.append(f"it asks for {changed}, which is not followed: tokens may differ from generate()'s")
    if own := _in_words(settings, LENGTH | (SAMPLING if settings.get("do_sample") else {})):
        found.append(f"it asks for {own}; how long an answer is and how it is sampled is each Request's own")
    if found:
        warnings.warn(f"{folder.name}: generation_config: {'; '.join(found)}", ModelWarning, stacklevel=3)


def _in_words(settings: dict, neutral: dict[str, tuple]) -> str:
    """The fields whose values ask for something."""
    given = {name: settings[name] for name in neutral if settings.get(name) is not None}
    return ", ".join(f"{name} {short(value)}" for name, value in given.items() if value not in neutral[name])
