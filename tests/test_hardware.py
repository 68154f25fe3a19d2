"""Hardware by name, and what a model's work takes on it: measured figures are met, what does not fit is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg import Config, Request, simulate
from disagg.plan.errors import ConfigError, EngineError
from disagg.plan.link import PRESETS
from disagg.twin.hardware import DEVICES, Costs, Hardware, Predicted, device_named
from disagg.twin.model_shapes import SHAPES, sizes_of
from disagg.twin.simulate import Speeds
from disagg.twin.work import Sizes, looked_at

EIGHT = Config.preset("streamed", model="random-llama3-8b", dtype="bfloat16")


def test_names_are_read_in_any_case_and_number():
    assert Hardware.parse("2xL4").words == "2 × L4" and Hardware.parse("8 x h100").count == 8
    assert Hardware.parse("rtx 4090").decode is DEVICES["rtx4090"]
    mixed = Hardware.parse("H100+L4")
    assert (mixed.prefill.name, mixed.decode.name, mixed.words) == ("H100", "L4", "H100 for prefill, L4 for decode")
    assert Hardware.parse(mixed) is mixed and Hardware.parse(DEVICES["a10"]).prefill.name == "A10"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("2xL5", "hardware 'L5' is unknown"),
        ("H101", "nearest: 'H100'"),
        ("0xL4", "there must be one device at least"),
        (7, "hardware 7 is unknown; known: L4, A10"),
        ("", "hardware '' is unknown"),
    ],
)
def test_unknown_hardware_is_refused_with_the_nearest(name, words):
    with pytest.raises(ConfigError, match="hardware") as caught:
        Hardware.parse(name)
    assert words in str(caught.value)


def test_every_device_names_its_source_and_links_that_there_are():
    for device in DEVICES.values():
        assert device.source and device.fit.source and device.link in PRESETS and device.host_link in PRESETS
        assert 0 < device.fit.products <= 1 and 0 < device.fit.reading <= 1 and device.memory > 10**9


@pytest.mark.parametrize(("tokens", "measured_ms"), [(2048, 47.5), (8192, 217.0)])
def test_an_h200s_passes_are_met(tokens, measured_ms):
    costs = Costs(sizes_of("llama3-8b"), device_named("H200"))
    assert 1e3 * (costs.pass_s([(0, tokens)]) + costs.head_s(1)) == pytest.approx(measured_ms, rel=0.05)


@pytest.mark.parametrize(("rows", "measured_ms"), [(1, 4.87), (16, 5.44), (64, 7.28)])
def test_an_h200s_steps_are_met(rows, measured_ms):
    costs = Costs(sizes_of("llama3-8b"), device_named("H200"))
    assert 1e3 * costs.step_s(rows, 1024 * rows) == pytest.approx(measured_ms, rel=0.05)


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=6), st.integers(1, 2999))
def test_cutting_a_prompt_changes_what_attention_looks_at_in_nothing(lengths, cut):
    whole = [(0, length) for length in lengths]
    parts = [part for _, n in whole for part in ((0, min(cut, n)), (min(cut, n), n))]
    assert looked_at(parts) == looked_at(whole) == sum(n * (n + 1) // 2 for n in lengths)


@pytest.mark.parametrize("name", SHAPES)
def test_more_work_takes_longer(name):
    costs = Costs(sizes_of(name), device_named("A100"))
    passes = [costs.pass_s([(0, tokens)]) for tokens in (1, 512, 2048, 8192)]
    steps = [costs.step_s(rows, 1024 * rows) for rows in (1, 16, 64, 256)]
    assert passes == sorted(passes) and steps == sorted(steps) and min(passes + steps) > 0


def test_seventy_billion_weights_do_not_fit_an_l4_and_the_error_says_by_how_much():
    config = EIGHT.replace(model="random-llama3-70b")
    with pytest.raises(ConfigError, match=r"does not fit L4: weights of 139,003,428,864 bytes .* more than 90% of its"):
        simulate(config, [Request([1] * 8, 2)], hardware="2xL4")


def test_more_workers_than_devices_are_refused():
    with pytest.raises(ConfigError, match="3 workers need as many devices, and 2 × L4 are 2"):
        simulate(EIGHT.replace(decode_workers=2), [Request([1], 2)], hardware="2xL4")


def test_an_unknown_model_has_the_nearest_and_any_config_counts():
    with pytest.raises(ConfigError, match="nearest: 'llama3-8b'"):
        sizes_of("llama3-8")
    fields = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=100)
    assert sizes_of(fields, "float32").token_bytes == 2 * 2 * 64 * 4
    with pytest.raises(ConfigError, match="needs vocab_size, a whole number from 1 on; got None"):
        sizes_of({**fields, "vocab_size": None})
    with pytest.raises(ConfigError, match="a mixture of experts"):
        sizes_of({**fields, "num_experts": 8})


def test_numbers_of_unknown_size_take_four_bytes():
    assert Sizes(layers=2, layer_weights=100, head_weights=30, width=4, token_bytes=10).weight_bytes == 4 * 230


def test_only_a_pass_in_which_a_prompt_ends_takes_longer_than_its_layers():
    costs = Predicted.of(EIGHT, Hardware.parse("2xH200"))
    (lead, layer, tail), (_, _, ending) = (costs.pass_ns([(0, 256)], ended, False) for ended in (0, 1))
    assert lead + tail == layer and ending - tail == round(1e9 * costs.prefill.head_s(1))


def test_a_run_on_hardware_is_a_run():
    run = simulate(EIGHT, [Request([1] * 2048, 8), Request([1] * 100, 8, 0.01)], hardware="2xH200")
    assert run.machine == "virtual clock, 2 × H200"
    first = run.results[0]
    costs = Predicted.of(EIGHT, Hardware.parse("2xH200")).prefill
    alone = sum(costs.pass_s([(at, min(at + 256, 2048))]) for at in range(0, 2048, 256)) + costs.head_s(1)
    beside = costs.pass_s([(0, 100)]) + costs.head_s(1)  # the short prompt rides in one of its passes
    assert first.finish_reason == "length" and alone < first.ttft_s < alone + 1.2 * beside
    assert run.overlap(0).hidden > 0.9, "NVLink hides all but the last copy"


def test_a_run_that_is_not_recorded_has_the_same_answers_and_no_timeline():
    asked = [Request([1] * 300, 8), Request([1] * 100, 8, 0.01)]
    run, lean = (simulate(EIGHT, asked, hardware="2xH200", record=record) for record in (True, False))
    assert [r.token_times_ns for r in lean.results] == [r.token_times_ns for r in run.results]
    assert not lean.timeline.spans and not lean.timeline.marks and not lean.log and run.log
    with pytest.raises(EngineError, match="record=False"):
        lean.results[0].receipt  # noqa: B018
    assert lean.metrics().ttft_s == run.metrics().ttft_s


def test_speeds_and_hardware_exclude_each_other():
    with pytest.raises(ConfigError, match="not both"):
        simulate(EIGHT, [Request([1], 2)], Speeds(), hardware="2xL4")


def test_the_slower_link_shows_in_the_hand_off():
    one, config = [Request([1] * 4096, 4)], EIGHT.replace(layers_per_copy=1)
    took = {name: simulate(config, one, hardware=name).overlap(0).transfer_s for name in ("2xH100", "2xL4")}
    assert took["2xL4"] - took["2xH100"] == pytest.approx(4096 * 131_072 * (1 / 26e9 - 1 / 450e9), rel=0.01)


def test_layers_are_put_together_as_an_engine_on_a_gpu_would():
    def copies(tokens: int, name: str) -> int:
        config = EIGHT.replace(chunk_tokens=8192)
        return len(simulate(config, [Request([1] * tokens, 2)], hardware=name).timeline.hand_off(0))

    assert copies(64, "2xH100") == 1, "a short prompt goes whole"
    assert 1 < copies(2048, "2xH100") < 32 == copies(8192, "2xL4")


@pytest.mark.parametrize("pair", [("H100", "A100"), ("A100", "H100")])
def test_workers_that_do_both_run_at_the_speed_of_their_own_device(pair):
    config = Config.preset("two_colocated", model="random-llama3-8b", dtype="bfloat16", prefill_device="cuda:0",
                           decode_device="cuda:1")  # fmt: skip
    requests = [Request([7] * 2000, 4), Request([7] * 2000, 4)]

    def took(config, hardware) -> dict[tuple[str, str], int]:
        spans = simulate(config, requests, hardware=hardware).timeline.spans
        return {(span.place, span.kind): span.end_ns - span.start_ns for span in spans}

    both = took(config, "+".join(pair))
    for index, device in enumerate(pair):
        alike = took(config, f"2x{device}")
        for kind in ("prefill", "decode"):
            assert both[f"decode {index}", kind] == alike[f"decode {index}", kind], (device, kind)
    assert both["decode 0", "prefill"] != both["decode 1", "prefill"]


def test_workers_that_do_both_have_room_for_no_more_than_the_smaller_device():
    config = Config.preset("two_colocated", model="random-llama3-8b", dtype="bfloat16")
    blocks = [simulate(config, [Request([7], 1)], hardware=name).config.decode_blocks for name in ("L4+H100", "2xL4")]
    assert blocks[0] == blocks[1]
