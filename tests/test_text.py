"""Text to ids and back, over tokenizers of every kind: pieces join to the text, spelled control tokens stay text."""

import json
import warnings
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, ByT5Tokenizer, GenerationConfig, PreTrainedTokenizerFast

from benchmarks.robustness.architectures import byte_tokenizer, make_tiny
from disagg import Config, Engine, Request
from disagg.plan.errors import ModelWarning, RequestError
from disagg.run.model import weights
from disagg.run.model.generation_config import warn_of_settings
from disagg.run.model.model import load_model
from disagg.run.model.text import ByteText
from disagg.run.model.tokenizer_text import TokenizerText

needs_smollm2 = pytest.mark.skipif(not weights.smollm2_ready(), reason="SmolLM2 is not converted; `make setup`")
BYTES = {f"<0x{byte:02X}>": 2 + byte for byte in range(256)}
CONTROL = "<s>"
WORDS = st.lists(st.sampled_from(["a", " ", "b ", "é", "🙂", CONTROL, "</s>", "x</s>y", "\n", "▁", "<"]), max_size=8)


def fallback(*strips):
    """As Llama 2's: what is no piece is its bytes, and a space at the start goes."""
    vocab = {"<s>": 0, "</s>": 1, **BYTES, "▁": 258, "a": 259, "▁a": 260, "▁▁": 261, "\ufffd": 262, "é": 263}
    made = Tokenizer(models.BPE(vocab, [("▁", "a"), ("▁", "▁")], unk_token="</s>", byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *(decoders.Strip(" ", *n) for n in strips),
        ]
    )
    return made, dict(bos_token="<s>", eos_token="</s>")


def words(split):
    made = Tokenizer(models.WordLevel({"<u>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4, "<": 5, "é": 6}, "<u>"))
    made.pre_tokenizer = split
    return made, dict(unk_token="<u>", bos_token="<s>", eos_token="</s>")


def unigram():
    pieces = ["<u>", "<s>", "</s>", "▁", "a", "b", "▁a", "<", "s", ">", "/", "\ufffd"]
    made = Tokenizer(models.Unigram([(piece, -float(i > 2)) for i, piece in enumerate(pieces)], 0))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return made, dict(unk_token="<u>", bos_token="<s>", eos_token="</s>")


def wordpiece():
    pieces = ["<u>", "<s>", "</s>", "a", "##a", "b", "##b", ".", "n't", "é", "##é"]
    made = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="<u>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece()
    return made, dict(unk_token="<u>", bos_token="<s>", eos_token="</s>")


def suffixed():
    pieces = ["<u>", "<s>", "</s>", "a", "b</w>", "a</w>", "é</w>"]
    ids = {piece: i for i, piece in enumerate(pieces)}
    made = Tokenizer(models.BPE(ids, [], end_of_word_suffix="</w>", unk_token="<u>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.WhitespaceSplit(), decoders.BPEDecoder()
    return made, dict(unk_token="<u>", bos_token="<s>", eos_token="</s>")


def bytelevel():
    """As GPT-2's, with pieces that end in the middle of a character, and an added token of no special kind."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("ð", "Ł"), ("a", "ð"), ("ĺ", "ð"), ("Ġ", "a")]
    names = ["<s>", "</s>", *symbols, *(a + b for a, b in merges)]
    made = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_tokens([AddedToken("<tool é>", special=False)])
    return made, dict(bos_token="<s>", eos_token="</s>")


KINDS = {
    "bytelevel": bytelevel, "fallback": lambda: fallback((1, 0)), "fallback strips more": lambda: fallback((2, 0)),
    "fallback strips nothing": fallback, "words": lambda: words(pre_tokenizers.WhitespaceSplit()),
    "words and signs": lambda: words(pre_tokenizers.Whitespace()), "unigram": unigram, "wordpiece": wordpiece,
    "suffixed": suffixed,
}  # fmt: skip


@cache
def folder(kind: str) -> Path:
    found = Path(mkdtemp())
    if kind == "byt5":
        ByT5Tokenizer(extra_ids=3).save_pretrained(found)
        return found
    made, names = KINDS[kind]()
    made.post_processor = processors.Sequence(
        [made.post_processor or processors.ByteLevel(trim_offsets=False)]
        + [processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))])]
    )
    PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(found)
    return found


@cache
def text_of(kind: str):
    return ByteText() if kind == "bytes" else TokenizerText(folder(kind), chat=False)


def streamed(text, ids) -> tuple[list[str], str | None]:
    pieces = text.detokenizer()
    return [*map(pieces.push, ids), pieces.flush()], pieces.error


every_kind = pytest.mark.parametrize("kind", [*KINDS, "byt5", "bytes"])
IDS = st.lists(st.one_of(st.integers(0, 12), st.integers(120, 275), st.just(10_000)), max_size=60)
RUNS = st.lists(st.sampled_from(["🙂", "é", "日本", "a", "\n"]), max_size=12).map("".join)


@every_kind
@given(ids=IDS)
def test_the_pieces_of_any_ids_join_to_the_text(kind, ids):
    text = text_of(kind)
    pieces, error = streamed(text, ids)
    assert ("".join(pieces), error) == text.read(ids)
    assert text.decode(ids) == "".join(pieces)


@every_kind
@given(ids=IDS, cut=st.integers(0, 60))
def test_text_that_is_out_stays_as_it_is(kind, ids, cut):
    whole = text_of(kind).decode(ids)
    pieces, _ = streamed(text_of(kind), ids[:cut])
    assert whole.startswith("".join(pieces[:-1]))


@every_kind
@given(ids=IDS)
def test_a_text_without_broken_characters_is_what_the_tokenizer_makes_of_it(kind, ids):
    text = text_of(kind)
    if kind == "byt5":
        ids = [token for token in ids if token < 259]
    if kind != "bytes" and "\ufffd" not in (expected := text.raw(ids)):
        assert text.decode(ids) == expected


@pytest.mark.parametrize("kind", ["bytelevel", "fallback", "byt5", "bytes"])
@given(said=RUNS, noise=st.lists(st.sampled_from([0x80, 0xF0, 0xFF]), max_size=3), then=RUNS)
def test_characters_come_as_soon_as_they_are_whole_also_behind_broken_ones(kind, said, noise, then):
    text, at = text_of(kind), {"fallback": 2, "byt5": 3, "bytes": 0}.get(kind)
    if at is None:
        ids = [*text.encode(said, chat=False)]
        pieces, _ = streamed(text, ids)
        assert "".join(pieces) == said and pieces[-1] == ""
        return
    first, broken, last = ([at + byte for byte in part] for part in (said.encode(), noise, then.encode()))
    pieces, _ = streamed(text, first)
    assert "".join(pieces) == said and pieces[-1] == "", "nothing is left to the end"
    if then and then[0] == "a":
        last[:1] = [259] if kind == "fallback" else last[:1]  # no byte of the broken run
        assert text.decode(first + broken + last).replace("\ufffd", "") == said + then


@every_kind
def test_a_token_costs_the_same_at_the_end_of_a_long_answer(kind, monkeypatch):
    text, longest = text_of(kind), 0
    if kind == "bytes":
        return
    honest = text.raw

    def watched(ids):
        nonlocal longest
        longest = max(longest, len(ids))
        return honest(ids)

    monkeypatch.setattr(text, "raw", watched)
    for ids in ([3] * 500, [130] * 500, [241] * 500, [10_000] * 500, [2, 241, 160] * 200, text.encode("🙂a" * 300)):
        streamed(text, ids)
    assert longest < 40


def test_an_id_that_can_not_be_decoded_is_named_and_ends_the_text():
    text = text_of("byt5")
    ids = [*text.encode("hé", chat=False)[:3], 900, *text.encode("x")]
    pieces, error = streamed(text, ids)
    assert "token id 900" in error and text.read(ids) == ("".join(pieces), error) == ("hé"[:2], error)


def model_folder(at: Path, kind: str, **config) -> str:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(LlamaConfig(vocab_size=1024, eos_token_id=1, **sizes)).save_pretrained(at)
    AutoTokenizer.from_pretrained(folder(kind)).save_pretrained(at)
    return str(at)


def test_such_a_request_fails_in_words_and_the_others_go_on(tmp_path):
    with Engine(Config.preset("streamed", model=model_folder(tmp_path, "byt5"))) as engine:
        healthy = engine.submit(Request("abc", force_ids=[100] * 40))
        odd = engine.submit(Request("abc", force_ids=[100, 101, 900, 100]))
        pieces, result = list(odd), odd.result(60)
        assert healthy.result(60).finish_reason == "length" and "".join(healthy) == "a" * 40
    assert result.finish_reason == "failed" and "900" in result.error and result.token_ids == [100, 101, 900, 100]
    assert "".join(pieces) == result.text == "ab"


@pytest.mark.parametrize("ids", [[2 + byte for byte in "🙂🙂".encode()], [258, 1, 260, 900, 0, 242, 161], [260, 1, 1]])
def test_a_handle_streams_what_its_result_says(ids, tmp_path):
    with Engine(Config.preset("streamed", model=model_folder(tmp_path, "fallback"))) as engine:
        handle = engine.submit(Request("a", force_ids=ids))
        assert "".join(handle) == handle.result(60).text
        assert handle.result().finish_reason == "length"


def test_a_panic_and_half_of_a_surrogate_pair_are_no_end_of_the_engine():
    text = TokenizerText(folder("byt5"), chat=False)
    text._tokenizer = SimpleNamespace(decode=odd_decode, convert_ids_to_tokens=str, all_special_ids=[])
    assert text.read([5, 6, 7]) == ("aa", "token id 7 can't be decoded by the model's tokenizer: out of bounds")
    assert text.read([0xD83D, 0xDE42]) == ("🙂", None) and text.read([0xD83D, 6]) == ("\ufffda", None)
    with pytest.raises(KeyboardInterrupt):
        text.read([8])


class Panic(BaseException):
    """As compiled tokenizers raise."""


def odd_decode(ids, **how) -> str:
    if 7 in ids or 8 in ids:
        raise Panic("out of bounds") if 7 in ids else KeyboardInterrupt
    return "".join(chr(token) if token > 0xFF else "a" for token in ids)


def test_a_text_that_the_tokenizer_can_not_take_is_refused_in_words(tmp_path):
    made = Tokenizer(models.WordLevel({"a": 0}, "u"))
    PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(tmp_path)
    for said in ("never seen", "\ud800"):
        with pytest.raises(RequestError, match="no valid text for the model's tokenizer"):
            TokenizerText(tmp_path, chat=False).encode(said)


@pytest.mark.parametrize("kind", [*KINDS, "byt5"])
@given(parts=WORDS)
def test_a_text_adds_no_control_token_whatever_it_spells(kind, parts):
    text = text_of(kind)
    special = set(text._tokenizer.all_special_ids) - {text._tokenizer.unk_token_id}
    held = [sum(token in special for token in text.encode(said, chat=False)) for said in ("a", "".join(parts))]
    assert held[1] == held[0] == 1, "one BOS, or ByT5's end"


def test_one_bos_where_the_tokenizer_does_not_call_it_special(tmp_path):
    made = Tokenizer(models.WordLevel({"<s>": 0, "a": 1, "u": 2}, "u"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="u").save_pretrained(tmp_path)
    assert TokenizerText(tmp_path, chat=False).encode("<s> a").count(0) == 1


@needs_smollm2
@given(parts=st.lists(st.sampled_from(["hi", " ", "\n", "\n\n", "<|im_end|>", "<|im_start|>", "system", "é", "\0"])))
def test_a_turn_ends_where_the_template_ends_it(parts):
    said = "".join(parts)
    text, plain = smollm2()
    ids = text.encode(said)
    assert [token for token in ids if token in (1, 2)] == [1, 2, 1, 2, 1], "system, user, assistant"
    turns = [{"role": "user", "content": said}]
    if "<|" not in said:
        assert ids == plain.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert plain.decode(ids) == plain.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)


@needs_smollm2
@given(said=st.lists(st.text(alphabet="a \n<|im_end|>\0é", max_size=12), min_size=1, max_size=5), system=st.booleans())
def test_a_conversation_is_the_templates_and_its_texts_control_nothing(said, system):
    text, plain = smollm2()
    roles = ["system"] * system + ["user", "assistant"] * len(said)
    turns = list(zip(roles, said, strict=False))
    ids = text.conversation(turns)
    count = len(turns) + (not system)  # the template adds a system's turn
    assert [token for token in ids if token in (1, 2)] == [1, 2] * count + [1]
    whole = plain.apply_chat_template(
        [{"role": role, "content": words} for role, words in turns], add_generation_prompt=True, tokenize=False
    )
    assert plain.decode(ids) == whole


def test_a_model_without_a_rendered_template_has_no_conversation():
    for kind in ("bytes", "byt5"):
        with pytest.raises(RequestError, match="no chat template"):
            text_of(kind).conversation([("user", "hi")])


@cache
def smollm2():
    at = weights.smollm2_folder()
    return TokenizerText(at, chat=True), AutoTokenizer.from_pretrained(at, local_files_only=True)


def said_of(at: Path, text=None, **fields) -> list[str]:
    """The warnings of a folder whose generation_config.json holds these fields."""
    (at / "generation_config.json").write_text(json.dumps(fields))
    module = SimpleNamespace(generation_config=GenerationConfig())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_settings(at, module, text or SimpleNamespace(drops_template=False))
    assert all(one.category is ModelWarning for one in caught)
    return [str(one.message) for one in caught]


@pytest.mark.parametrize(
    ("name", "value"),
    [("repetition_penalty", 1.3), ("no_repeat_ngram_size", 3), ("suppress_tokens", [7]), ("bad_words_ids", [[1, 2]])]
    + [("begin_suppress_tokens", [0]), ("forced_bos_token_id", 0), ("forced_eos_token_id", 2), ("min_length", 5)]
    + [("min_new_tokens", 5), ("num_beams", 4), ("guidance_scale", 1.5), ("stop_strings", ["x"])],
)
def test_a_setting_that_would_change_the_tokens_is_named_with_its_value(name, value, tmp_path):
    (said,) = said_of(tmp_path, **{name: value})
    assert f"{name} {value!r}" in said and "not followed" in said


def test_sampling_and_length_are_a_requests_own(tmp_path):
    (said,) = said_of(tmp_path, do_sample=True, temperature=0.6, top_p=1.0, max_new_tokens=9)
    assert "do_sample True, temperature 0.6" in said and "max_new_tokens 9" in said
    assert "top_p" not in said and "Request's own" in said


def test_supported_or_empty_options_are_not_reported(tmp_path):
    assert said_of(tmp_path, temperature=0.6, eos_token_id=[1, 2], pad_token_id=0, max_length=20) == []
    assert said_of(tmp_path, repetition_penalty=1.0, num_beams=1, do_sample=False, bad_words_ids=None) == []


def test_a_template_that_is_not_rendered_is_reported_once_at_load(tmp_path):
    make_tiny("llama", tmp_path)
    load_quietly(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(tmp_path)
    with pytest.warns(ModelWarning, match="chat template is not rendered") as caught:
        model = load_model(str(tmp_path))
    assert len(caught) == 1 and model.encode("hi") == model.encode("hi", chat=False)


def load_quietly(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ModelWarning)
        return load_model(str(name))


def test_tiny_says_nothing():
    load_quietly("tiny")


@needs_smollm2
def test_smollm2_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error", ModelWarning)
        warn_of_settings(weights.smollm2_folder(), None, smollm2()[0])
