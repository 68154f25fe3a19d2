"""Model folders as downloads leave them: what the index maps is loaded; other files are ignored or refused by name."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from benchmarks.robustness.architectures import make_tiny
from disagg.plan.errors import ModelError
from disagg.run.model.folder_checks import INDEX, check_folder
from disagg.run.model.model import load_model

NORM, EMBED, HEAD = "model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with one file of weights, and those weights."""
    folder = make_tiny("llama", tmp_path_factory.mktemp("whole"))
    return folder, load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def made(whole, tmp_path_factory):
    """Writes a folder like `whole` with these files of tensors, an index, and changes to its config."""

    def make(files: dict[str, dict], index: dict | None = None, **changes) -> str:
        folder = tmp_path_factory.mktemp("made")
        for path in whole[0].glob("*.json"):
            (folder / path.name).write_bytes(path.read_bytes())
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))
        for name, tensors in files.items():
            save_file({key: value.clone() for key, value in tensors.items()}, folder / name, {"format": "pt"})
        if index is not None:
            (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
        return str(folder)

    return make


def loaded(folder: str) -> dict:
    return dict(load_model(folder, join_projections=False).module.named_parameters(remove_duplicate=False))


@st.composite
def partitions(draw, names):
    """Shards of all the names, and for some names a second shard that holds a stale copy."""
    files = [f"{letter}.safetensors" for letter in "abc"]
    index = {name: draw(st.sampled_from(files)) for name in names}
    stale = draw(st.dictionaries(st.sampled_from(names), st.sampled_from(files), max_size=2))
    return index, {name: file for name, file in stale.items() if file in index.values()}


@given(st.data())
@settings(max_examples=12, deadline=None)
def test_the_index_says_what_is_loaded_and_a_stale_copy_never_wins(whole, made, data):
    tensors = whole[1]
    index, stale = data.draw(partitions(sorted(tensors)))
    files = {file: {} for file in index.values()}
    for name, file in stale.items():
        files[file][name] = tensors[name] + 7
    for name, file in index.items():
        files[file][name] = tensors[name]
    strays = {"consolidated.safetensors": {"tok_embeddings.weight": tensors[EMBED] * 3}, "old.safetensors": tensors}
    folder = made(files | strays, index)
    misplaced = [(file, name) for name, file in stale.items() if index[name] != file]
    if misplaced:
        with pytest.raises(ModelError, match="{} holds tensor '{}'".format(*min(misplaced))):
            check_folder(Path(folder))
    else:
        found = loaded(folder)
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_what_index_and_shards_disagree_about_is_named(whole, made):
    tensors = whole[1]
    index = dict.fromkeys(tensors, "a.safetensors")
    less = {name: tensor for name, tensor in tensors.items() if name != NORM}
    wrong = {
        f"a.safetensors lacks tensor '{NORM}'": made({"a.safetensors": less}, index),
        f"a.safetensors holds tensor '{NORM}'.*does not name": made(
            {"a.safetensors": tensors}, dict.fromkeys(less, "a.safetensors")
        ),
        "model.safetensors stands beside": made({"model.safetensors": tensors, "a.safetensors": tensors}, index),
        r"neither model.safetensors nor .*'a.safetensors', 'b.safetensors'": made(
            {"a.safetensors": less, "b.safetensors": {NORM: tensors[NORM]}}
        ),
    }
    for match, folder in wrong.items():
        with pytest.raises(ModelError, match=match):
            load_model(folder)


def test_files_beside_a_whole_one_are_not_read(whole, made):
    folder = made({"model.safetensors": whole[1], "adapter_model.safetensors": {NORM: whole[1][NORM] * 5}})
    (Path(folder) / "broken.safetensors").write_bytes(b"half a download")
    assert torch.equal(loaded(folder)[NORM], whole[1][NORM])


HOMELESS = ["model.layers.0.self_attn.q_proj.bias", "model.layers.3.mlp.up_proj.weight", "model.norm.bias",
            "model.norm.gamma", "visual.patch.weight", "score.weight"]  # fmt: skip


@given(st.dictionaries(st.sampled_from(HOMELESS), st.integers(1, 3), min_size=1))
@settings(max_examples=6, deadline=None)
def test_a_tensor_without_a_place_is_refused_by_name(whole, made, extra):
    more = {name: torch.ones(size) for name, size in extra.items()}
    with pytest.raises(ModelError, match=f"{len(more)} unexpected keys, the first is {min(more)}.*LlamaForCausalLM"):
        load_model(made({"model.safetensors": whole[1] | more}))


def test_what_old_checkpoints_hold_beside_the_weights_is_no_reason(whole, made, tmp_path):
    frequencies = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(8) for layer in range(3)}
    assert torch.equal(loaded(made({"model.safetensors": whole[1] | frequencies}))[NORM], whole[1][NORM])
    path = make_tiny("gpt2", tmp_path) / "model.safetensors"
    mask = {"transformer.h.0.attn.bias": torch.ones(1, 1, 256, 256).tril()}
    save_file(load_file(path) | mask, path, {"format": "pt"})
    load_model(str(tmp_path))


def test_a_tensor_under_two_names_is_refused(whole, made):
    with pytest.raises(ModelError, match="hold 'norm.weight' twice, with and without 'model.'"):
        load_model(made({"model.safetensors": whole[1] | {"norm.weight": whole[1][NORM] * 9}}))


def test_tied_weights_may_stand_there_once_or_be_equal(whole, made):
    tensors = {name: tensor for name, tensor in whole[1].items() if name != HEAD}
    for head in (None, tensors[EMBED]):
        more = {} if head is None else {HEAD: head}
        found = loaded(made({"model.safetensors": tensors | more}, tie_word_embeddings=True))
        assert found[HEAD] is found[EMBED] and torch.equal(found[HEAD], tensors[EMBED])
    with pytest.raises(ModelError, match="ties lm_head.weight .* set tie_word_embeddings to false"):
        load_model(made({"model.safetensors": whole[1]}, tie_word_embeddings=True))
    with pytest.raises(ModelError, match="1 missing keys, the first is lm_head.weight"):
        load_model(made({"model.safetensors": tensors}, tie_word_embeddings=False))
