"""The module of a model folder: each tensor from the files that folder_checks.py checked, none left over."""

from pathlib import Path
from typing import Any

import torch

from disagg.imported_later import first_of
from disagg.plan.errors import ModelError
from disagg.run.gpu.memory import is_shortage
from disagg.run.model import weights
from disagg.run.model.folder_checks import check_promise
from disagg.run.model.text import first_line


def load_folder(folder: Path, dtype: torch.dtype, pinned: bool = False) -> torch.nn.Module:
    """The module of a checked folder, with the attention that transformers would give it; ModelError if its files and
    its config.json do not belong together. A pinned folder was checked when it was written."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        if not pinned:
            check_promise(folder, config)
        softcap = getattr(config, "attn_logit_softcapping", None)  # eager attention alone computes it
        options = dict(config=config, dtype=dtype, attn_implementation="eager" if softcap else None)
        options |= dict(local_files_only=True, use_safetensors=True, output_loading_info=True)
        options |= dict(ignore_mismatched_sizes=True)  # check_tensor_names refuses them, by name
        with weights.quiet_transformers():
            loaded: Any = AutoModelForCausalLM.from_pretrained(folder, **options)
        module, info = loaded
    except ModelError:
        raise
    except Exception as error:  # any error that a folder causes in transformers is the folder's
        if is_shortage(error):
            raise
        raise ModelError(f"{folder.name}: transformers can't load it: {first_line(first_of(error))}") from None
    check_tensor_names(folder, module, info)
    return module


def check_tensor_names(folder: Path, module: Any, info: dict) -> None:
    """Refuse tensors that the files lack, hold in another shape or hold in vain: transformers would fill in noise, drop
    the rest, and untie what the files hold apart."""
    untied = set(module.get_expanded_tied_weights_keys(all_submodels=True)) - set(module.all_tied_weights_keys)
    for problem in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if info[problem]:
            first = min(map(str, info[problem]))
            raise ModelError(
                f"{folder.name}: {len(info[problem])} {problem.replace('_', ' ')}, the first is {first}: these are not "
                f"the weights of the {type(module).__name__} that config.json declares"
            )
    if untied:
        raise ModelError(
            f"{folder.name}: config.json ties {min(untied)} to another tensor, but the files hold values of its own "
            "for it; set tie_word_embeddings to false, or remove it"
        )
