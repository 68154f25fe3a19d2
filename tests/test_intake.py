"""The engine and its twin take and refuse the same requests; numbers of any type become plain ones or are refused."""

import math
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from disagg import Config, Request, simulate
from disagg.plan.errors import ConfigError, DisaggError, RequestError
from disagg.plan.intake import Limits
from disagg.plan.intake import job_of as planned
from disagg.run.engine import job_of
from disagg.run.model.text import ByteText
from disagg.twin.model_shapes import SHAPES, TINY_CONTEXT, context_of, limits_of

TINY = limits_of("tiny")
MODEL = SimpleNamespace(name="tiny", vocab_size=TINY.vocab, context_limit=TINY.context, eos_ids=(256,),
                        encode=ByteText().encode)  # fmt: skip
IDS = st.integers(-1, TINY.vocab + 1)


class Odd(IntEnum):
    SEVEN = 7


NUMBERS = [
    0, 1, -1, 7, 10**400, -(10**400), 2**62, 0.5, -0.0, 1e-320, 1e300, math.nan, math.inf, True, False, None, "1",
    Fraction(1, 2), Fraction(1, 10**400), Fraction(10**400), Decimal(1), Decimal("nan"), 1j, Odd.SEVEN, np.True_,
    np.int8(3), np.uint64(2**63), np.float16(0.5), np.float32("nan"), np.float64(1), np.array(1), np.array([1.0]),
    torch.tensor(1), torch.tensor(0.5), torch.tensor([1, 2]), [1], object(),
]  # fmt: skip


def said(call):
    """What it gives, or the error it ends with."""
    try:
        return call()
    except DisaggError as error:
        return type(error), str(error)


@given(st.sampled_from(["max_new_tokens", "arrival_s", "temperature", "top_p", "seed"]), st.sampled_from(NUMBERS))
def test_a_number_of_any_type_is_a_plain_one_or_is_refused_in_words(field, value):
    try:
        request = Request([1], **{field: value})
    except RequestError as error:
        assert f"{field} must be" in str(error)
        return
    kept = getattr(request, field)
    assert type(kept) in ((int, type(None)) if field in ("seed", "max_new_tokens") else (float,))
    assert value is None or (kept == value and math.isfinite(kept)) or abs(kept - value) < 1e-6


@given(st.lists(st.sampled_from(NUMBERS), min_size=1, max_size=3), st.sampled_from(["prompt", "force_ids"]))
def test_ids_of_any_type_are_plain_ones_or_are_refused_in_words(ids, field):
    try:
        request = Request(**{"prompt": [1], field: ids})
    except RequestError as error:
        assert f"{field} must be" in str(error)
        return
    assert all(type(token) is int for token in getattr(request, field))
    assert type(said(lambda: planned(request, TINY))) in (tuple, type(planned(Request([1]), TINY)))


@pytest.mark.parametrize(
    "given_ids", [np.array([1, 2]), torch.tensor([1, 2]), (np.int32(1), 2), range(1, 3), [Odd.SEVEN]]
)
def test_arrays_of_ids_become_lists_of_ints(given_ids):
    assert {type(token) for token in Request(given_ids).prompt} == {int}


@given(
    st.lists(IDS, min_size=1, max_size=4), st.integers(1, 5), st.none() | st.lists(IDS, min_size=1, max_size=4),
    st.sampled_from([0, TINY_CONTEXT - 5, TINY_CONTEXT - 1, TINY_CONTEXT, 10**12]),
)  # fmt: skip
@example([1], 64, [1] * 3, 0)
def test_the_twin_refuses_what_the_engine_refuses_and_gives_as_many_tokens(ids, new, forced, more):
    for request in (Request(ids * (more // len(ids) if more < 10**6 else 1) or ids, new, force_ids=forced),
                    Request(ids, new + more, force_ids=forced)):  # fmt: skip
        real = said(lambda request=request: job_of(request, MODEL))
        twin = said(lambda request=request: simulate(Config(model="tiny"), [request], record=False).results[0])
        if isinstance(real, tuple):
            assert twin == real
        else:
            assert len(twin.token_ids) == real.max_new_tokens
            assert forced is None or twin.token_ids == forced


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_the_last_new_token_needs_no_place_in_the_context(prompt, new, context):
    found = said(lambda: planned(Request([1] * prompt, new), Limits("it", 9, context)))
    assert isinstance(found, tuple) is (prompt + new - 1 > context)


def test_a_text_without_a_token_is_refused_by_name():
    with pytest.raises(RequestError, match="' ' has no token in it's tokenizer"):
        planned(Request(" "), Limits("it", 9, 9), lambda text: [])


def test_a_request_without_a_seed_takes_the_configs_and_one_with_a_seed_keeps_its_own():
    seeds = [planned(Request([1], seed=own), TINY, seed=5).sampling.seed for own in (None, 0, 3)]
    assert seeds == [5, 0, 3] and planned(Request([1]), TINY).sampling.seed == 0


def test_limits_are_known_of_every_shape_and_of_a_folder(tmp_path):
    for name in ("tiny", "smollm2", *("random-" + shape for shape in SHAPES)):
        assert limits_of(name).vocab > 256 and limits_of(name).context >= 2048
    with pytest.raises(ConfigError, match="has no known shape"):
        simulate(Config(model="nowhere"), [Request([1])])
    assert context_of({"max_position_embeddings": 99}) == 99 and context_of({}) == 2048
    scaled = {"max_position_embeddings": 99, "rope_scaling": {"type": "dynamic", "original_max_position_embeddings": 9}}
    assert context_of(scaled) == 9
    with pytest.raises(ConfigError, match="the context is -1 tokens"):
        context_of({"max_position_embeddings": -1})
