"""Every refusal of Config and Request, word by word, and the ladder of presets."""

import ast
import dataclasses
import math
from fractions import Fraction
from pathlib import Path

import numpy
import pytest

import disagg
from disagg.plan.checks import is_text, is_whole, short
from disagg.plan.config import PRESETS, RANGES, Config
from disagg.plan.errors import ConfigError, RequestError
from disagg.plan.intake import Limits, job_of
from disagg.plan.link import Link
from disagg.plan.request import Request

ON_GPU = {"prefill_device": "cuda:0", "decode_device": "cuda:0"}
TWO_GPUS = {"prefill_device": "cuda:0", "decode_device": "cuda:1"}
FROM_ONE = [name for name, (least, _) in RANGES.items() if least == 1]
WRONG_NUMBERS = [-1, 1.0, "8", True, math.nan, math.inf, [8], {}]
WRONG_SECONDS = [0, -1.5, math.nan, math.inf, 1e300, 10**400, "5", True, [1]]
WRONG_DEVICES = ["gpu", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "", None, 0, "CPU"]
WRONG_PROMPTS = [None, 5, 3.5, object(), [1.0], ["a"], [True], [None], {1}, b"bytes", [[1]]]
SPLIT = "sm_split=32 gives decode that many SMs of the one GPU that it shares with prefill, but here"


def test_what_is_left_open_follows_the_device():
    cpu, gpu = Config(), Config(**ON_GPU)
    names = ("block_size", "chunk_tokens", "compile", "graphs", "fused_decode", "verify_kv")
    assert [getattr(cpu, name) for name in names] == [16, 256, False, False, False, True]
    assert [getattr(gpu, name) for name in names] == [256, 2048, True, True, True, False]
    assert Config(**ON_GPU, graphs=False).graphs is False


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"route": "stagd"}, "route must be one of bulk, direct, staged; got 'stagd'; nearest: 'staged'"),
        (
            {"policy": "shortst"},
            "policy must be one of fcfs, shortest, deadline, or an object; got 'shortst'; nearest: 'shortest'",
        ),
        ({"dtype": "float8"}, "dtype must be one of float32, float16, bfloat16; got 'float8'; nearest: 'float32'"),
        ({"attention": "flash"}, "attention='flash' and graphs=True are a GPU's; here are CPU cores: leave them out"),
        ({"attention": "flsh"}, "attention must be one of auto, flash, sdpa, plain; got 'flsh'; nearest: 'flash'"),
        ({**ON_GPU, "sm_split": 0}, "sm_split must be a whole number, 1 or more; got 0"),
        ({**ON_GPU, "sm_split": 32, "prefill_workers": 0}, f"{SPLIT} they take turns on one worker; leave it out"),
        ({**TWO_GPUS, "sm_split": 32}, f"{SPLIT} they are on cuda:0 and cuda:1; leave it out"),
        ({"sm_split": 32}, f"{SPLIT} they are on CPU cores, which have none; leave it out"),
        ({**ON_GPU, "sm_split": -8}, "sm_split must be a whole number, 1 or more; got -8"),
        ({**ON_GPU, "sm_split": 32.0}, "sm_split must be a whole number, 1 or more; got 32.0"),
        (
            {"chunk_tokens": 100},
            "chunk_tokens (100) must be a multiple of block_size (16), so that a chunk hands off whole blocks",
        ),
        ({"bins": 64}, "bins must be a tuple of context lengths in tokens; got 64"),
        ({"bins": (64, 0)}, "bins must be a whole number, 1 or more; got 0"),
        ({"bins": (64.5,)}, "bins must be a whole number, 1 or more; got 64.5"),
        ({"bins": (128, 64)}, "bins must rise: got (128, 64); for example (64, 128, 256, 512)"),
        ({"bins": [64, 64]}, "bins must rise: got (64, 64); for example (64, 128, 256, 512)"),
        (
            {"decode_device": "cuda"},
            "prefill_device='cpu' with decode_device='cuda' is an impossible pair: "
            "take two CPU workers or GPUs for both",
        ),
        (
            {"prefill_workers": 0, **TWO_GPUS},
            "prefill_workers=0 puts prefill on the decode device, but prefill_device='cuda:0' "
            "and decode_device='cuda:1' differ; set both alike, or take two decode_workers, one for each",
        ),
        ({"link": (1e6, 1e6, 1e6)}, "link takes one link or a pair for the two hops; got 3 of them"),
        ({"link": math.nan}, "link bandwidth must be bytes a second, 1 or more; got nan"),
    ],
    ids=str,
)
def test_a_config_refuses_in_words(fields, words):
    with pytest.raises(ConfigError) as caught:
        Config(**fields)
    assert str(caught.value) == words


def wrong(names, words: str, *values) -> list[tuple]:
    """A case for each of these fields and values."""
    return [(name, value, words) for name in names for value in values]


MUST_BE = [
    *wrong(["prefill_workers", "host_blocks", "seed"], "a whole number, 0 or more", *WRONG_NUMBERS),
    *wrong(FROM_ONE, "a whole number, 1 or more", 0, *WRONG_NUMBERS),
    *wrong(["prefill_workers", "seed"], "a whole number, 0 or more", None),
    *wrong(["decode_workers", "ring_slots", "max_batch", "threads"], "a whole number, 1 or more", None),
    *wrong(["watchdog_s", "itl_target_s"], "seconds, above 0 and up to 1e+09", *WRONG_SECONDS),
    *wrong(["watchdog_s"], "seconds, above 0 and up to 1e+09", None),
    *wrong(["verify_kv", "join_projections", "compile", "overlap", "pinned"], "True or False", 1, 0, "yes", math.nan),
    *wrong(["fused_decode"], "True or False", 1, 0, "no"),
    *wrong(["prefill_device", "decode_device"], '"cpu", "cuda" or "cuda:N"', *WRONG_DEVICES),
    *wrong(["route"], "one of bulk, direct, staged", None, ["bulk"]),
    *wrong(["dtype"], "one of float32, float16, bfloat16", None, ["float32"]),
    *wrong(["attention"], "one of auto, flash, sdpa, plain", None, ["auto"]),
]
for field, (_, most) in RANGES.items():
    MUST_BE += wrong([field], f"at most {most:,}", most + 1, most + 10**6, most + 10**400)


@pytest.mark.parametrize("name, value, words", MUST_BE, ids=short)
def test_a_field_of_a_config_must_be_what_it_says(name, value, words):
    with pytest.raises(ConfigError) as caught:
        Config(**{name: value})
    assert str(caught.value) == f"{name} must be {words}; got {short(value)}"


def test_unknown_names_fail_with_the_nearest():
    for make in (lambda **f: Config.preset("split", **f), Config().replace, Config):
        with pytest.raises(ConfigError) as caught:
            make(max_batches=4)
        assert str(caught.value) == "field 'max_batches' is unknown; nearest: 'max_batch'"
    with pytest.raises(ConfigError) as caught:
        Config.preset("stream")
    assert str(caught.value).startswith("preset 'stream' is unknown; nearest: 'streamed'; known: baseline, colocated")
    for name in ("zzz", None, 3, ["staged"], ""):
        with pytest.raises(ConfigError, match="^preset .* is unknown; known: "):
            Config.preset(name)


def test_every_preset_is_a_config_and_every_field_can_be_overridden():
    assert list(PRESETS) == [
        "baseline", "colocated", "split", "streamed", "staged", "paged", "dynamic", "two_colocated",
        "conditional",
    ]  # fmt: skip
    for name in PRESETS:
        assert Config.preset(name, max_batch=3).max_batch == 3
    assert [name for name in PRESETS if Config.preset(name).colocated] == [
        *("baseline", "colocated", "two_colocated", "conditional")
    ]
    routes = [Config.preset(name).route for name in ("split", "streamed", "staged", "paged", "dynamic")]
    assert routes == ["bulk", "direct", "staged", "staged", "staged"]
    assert Config.preset("paged").host_blocks is None and Config.preset("staged").host_blocks == 0
    targets = {name: Config.preset(name).itl_target_s for name in PRESETS}
    assert targets == {**dict.fromkeys(PRESETS), "dynamic": 0.5}, "half a second, as notebook 05 says"


def test_a_config_is_frozen_and_a_replacement_is_checked():
    config = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
    assert config.replace(seed=5).seed == 5 and config.seed == 0
    with pytest.raises(ConfigError, match="must be a multiple of block_size"):
        config.replace(block_size=48)


def test_bins_may_be_a_list_and_links_a_pair():
    assert Config(bins=[4, 8]).bins == (4, 8)
    assert Config(link=(1e6, None)).links == (Link(1e6), Link())
    assert Config(link="1gbe").links[0] == Config(link="1gbe").links[1] == Link(0.125e9)


def test_a_link_too_fast_for_a_cpu_is_fine_between_gpus():
    with pytest.raises(ConfigError, match="faster than the emulation holds"):
        Config(link="pcie4x16")
    assert Config(link="pcie4x16", **TWO_GPUS).links[0] == Link(26e9)


WRONG_REQUESTS = {
    "prompt": ("text or a list of token ids", WRONG_PROMPTS),
    "max_new_tokens": ("a whole number, 1 or more", (0, -1, 1.0, "8", True, None, math.nan)),
    "temperature": ("a number from 0 to 100", (-0.1, math.nan, math.inf, "1", True, None, 101)),
    "top_p": ("a number from 0 to 1", (-0.1, 1.1, math.nan, "1", True, None)),
    "arrival_s": ("a number from 0 to 1e+09", (-1, math.nan, math.inf, "1", True, None, 1e10)),
    "seed": (f"a whole number, {1 - 2**62} or more", ("1", 1.5, True, math.nan, Fraction(1, 2))),
    "ignore_eos": ("True or False", (1, "no", None)),
    "keep_logits": ("True or False", (1, "no", None)),
}


@pytest.mark.parametrize("field", WRONG_REQUESTS)
def test_a_field_of_a_request_must_be_what_it_says(field):
    must, values = WRONG_REQUESTS[field]
    for value in values:
        with pytest.raises(RequestError) as caught:
            Request(**{"prompt": "why", field: value})
        got = type(value).__name__ if field == "prompt" else short(value)
        assert str(caught.value) == f"{field} must be {must}; got {got}"


@pytest.mark.parametrize(
    "field, values, words",
    [
        ("prompt", ("", [], ()), "prompt is empty; give at least one token"),
        ("top_p", (0,), "top_p must be above 0; take temperature=0 for greedy decoding"),
        ("force_ids", ([], "ab", [1.5], [True], 3, b"abc", ["1"]), "force_ids must be a list of at least one token id"),
    ],
)
def test_a_request_refuses_in_words(field, values, words):
    for value in values:
        with pytest.raises(RequestError) as caught:
            Request(**{"prompt": "why", field: value})
        assert str(caught.value) == words


def test_sampling_of_a_request():
    limits = Limits("tiny", 256, 64)
    request = Request([1], temperature=0.5, seed=3, force_ids=[4, 5], keep_logits=True)
    sampling = job_of(request, limits, seed=9).sampling
    assert (sampling.temperature, sampling.seed, sampling.force_ids, sampling.keep_logits) == (0.5, 3, (4, 5), True)
    assert job_of(Request([1]), limits).sampling.seed == 0
    assert job_of(Request([1]), limits, seed=9).sampling.seed == 9
    assert job_of(Request([1], seed=0), limits, seed=9).sampling.seed == 0


@pytest.mark.parametrize("workers, devices", [(2, ["cuda:0", "cuda:1"]), (3, ["cuda:0", "cuda:1", "cuda:0"])])
def test_colocated_workers_are_dealt_to_two_devices(workers, devices):
    config = Config.preset("two_colocated", decode_workers=workers, **TWO_GPUS)
    assert [config.device_of("decode", index) for index in range(workers)] == devices


def test_each_worker_has_its_device():
    config = Config.preset("staged", **TWO_GPUS)
    assert [config.device_of(role, 0) for role in ("prefill", "decode", "host")] == ["cuda:0", "cuda:1", "cpu"]


def test_numpys_integers_are_whole_numbers_and_truth_values_are_none():
    assert all(is_whole(value) for value in (0, -3, 2**70, numpy.int64(3), numpy.uint8(3)))
    assert not any(is_whole(value) for value in (True, numpy.bool_(True), 3.0, numpy.float64(3), "3", None))


def test_halves_of_surrogate_pairs_are_no_text():
    assert all(is_text(value) for value in ("", "why", "pourquoi après ça", "\ud7ff", "\ue000", "𝄞"))
    assert not any(is_text(value) for value in ("\ud800", "\udfff", "é\ud834", "\udd1e why", b"why", None))


def test_a_value_in_an_error_is_a_glance_of_it():
    assert [len(short("x" * count)) for count in (57, 58, 59, 999)] == [59, 60, 58, 58]
    assert short("x" * 59) == "'" + "x" * 56 + "…"


def test_every_field_of_a_config_and_of_a_request_is_read_somewhere():
    """Its own file, which checks it, does not count."""
    package = Path(disagg.__file__).parent
    for kind, own in ((Config, "config.py"), (Request, "request.py")):
        read = set()
        for path in package.rglob("*.py"):
            if path.name != own and "show" not in path.parts:
                read |= {node.attr for node in ast.walk(ast.parse(path.read_text("utf-8")))
                         if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}  # fmt: skip
        looked_at = read | READ_IN_THEIR_FILE[kind]
        assert [f.name for f in dataclasses.fields(kind) if f.name not in looked_at] == []


#: What a method of the record itself makes something of, by that method.
READ_IN_THEIR_FILE = {
    Config: {"bins", "link", "prefill_device"},
    Request: {"temperature", "top_p", "seed", "keep_logits"},  # Request.sampling
}
