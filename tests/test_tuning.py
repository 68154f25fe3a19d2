"""Tuning: the best is the best of all trials, each of which runs again from its row; what is skipped says why."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from disagg import Config, simulate
from disagg.cli import main, output
from disagg.plan.errors import ConfigError, RequestError
from disagg.show.plots.pareto_plot import KINDS, effort, front_picture, front_rows, workload
from disagg.trace.archive import config_from
from disagg.twin import goodput as goodputs
from disagg.twin import tuning
from disagg.twin.goodput import Goodput, Load, Probe, Slo, goodput
from disagg.twin.hardware import Hardware
from disagg.twin.search_space import arrangements, base_of, settings
from disagg.twin.tuning import Trial, Tuning, tune
from disagg.twin.workloads import Lengths, poisson

EIGHT = "random-llama3-8b"
SOME = poisson(10, 1.0, Lengths(1500, 0.5), Lengths(8), seed=3)
SLO = Slo(1.0, 0.12)


@pytest.fixture(scope="module", autouse=True)
def few_requests_will_do():
    """So that a simulation takes milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(goodputs, "LASTS", 0.5)
        yield


@pytest.fixture(scope="module")
def found() -> Tuning:
    return tune(SOME, "2xL4", SLO, EIGHT)


def test_the_best_is_measured_and_nothing_tried_is_better(found):
    best, load = found.best, found.load
    assert best.per_s == max(t.per_s or 0 for t in found.trials) and best.attainment >= 0.9
    assert best in found.front and not found.skipped
    alone = goodput(best.config, load, SLO, best.hardware, round_step(load, best.per_s))
    assert (alone.per_s, alone.attainment) == (best.per_s, best.attainment)


def round_step(load: Load, per_s: float) -> int:
    return next(step for step in range(-160, 161) if load.rate(step) == per_s)


def trial_of(row: dict) -> Trial:
    probes = tuple(Probe(*probe) for probe in row["probes"])
    return Trial(**{**row, "config": config_from(row["config"]), "probes": probes})


def test_every_trial_runs_again_from_its_row(found):
    for trial in (found.trials[0], found.best, found.trials[-1]):
        again = trial_of(json.loads(json.dumps(trial.row)))
        assert again == trial
        for probe in again.probes[:2]:
            run = simulate(again.config, found.load.at(probe.per_s), hardware=again.hardware)
            assert run.metrics(SLO.ttft_s, SLO.tpot_s).attainment == probe.attainment


def test_the_same_seed_gives_the_same_trials(found):
    said: list[str] = []
    one, other = (tune(SOME, "1xL4", SLO, EIGHT, seed=7, say=said.append).trials for _ in range(2))
    assert len(set(said)) == len(one) and said[0] == f"1: {one[0].words}", "each line names what it tries"
    assert one == other and one[0] == found.trials[0], "times do not depend on which tokens were drawn"


def test_rivals_that_do_not_split_and_every_setting_were_tried(found):
    tried = {(t.devices, t.arrangement) for t in found.trials}
    assert tried == {(1, "one for both"), (2, "2, each for both"), (2, "1 prefill + 1 decode")}
    configs = [t.config for t in found.trials]
    for name in ("chunk_tokens", "max_batch"):  # of the best arrangement, which hands nothing off
        assert len({getattr(config, name) for config in configs}) >= 3, name
    assert all(c.route == "staged" for c in configs if c.ring_slots != Config().ring_slots)


def test_devices_are_shared_out_in_every_way():
    ways = arrangements(base_of(EIGHT, Hardware.parse("L4")), Hardware.parse("4xL4"))
    assert [(w.config.prefill_workers, w.config.decode_workers) for w in ways] == [
        (0, 1), (0, 2), (1, 1), (0, 3), (1, 2), (2, 1), (0, 4), (1, 3), (2, 2), (3, 1)
    ]  # fmt: skip
    assert all(w.hardware.count == w.config.prefill_workers + w.config.decode_workers for w in ways)
    assert [w.place for w in ways[::3]] == ["1xL4", "3xL4", "4xL4", "4xL4"]
    assert all(Hardware.parse(w.place) == w.hardware for w in ways)
    assert len(list(settings(ways[0]))) == 2 and len(list(settings(ways[2]))) == 4, "one device has nothing to copy"


@pytest.mark.parametrize(
    ("block", "chunks"), [(256, [256, 512, 1024, 2048, 4096, 8192]), (1024, [1024, 2048, 4096, 8192])]
)
def test_only_chunks_of_whole_blocks_are_tried(block, chunks):
    base = base_of(EIGHT, Hardware.parse("L4")).replace(block_size=block, chunk_tokens=block)
    tried = next(settings(arrangements(base, Hardware.parse("1xL4"))[0]))
    assert tried == [{"chunk_tokens": tokens} for tokens in chunks]


def test_an_arrangement_is_not_judged_by_a_batch_that_binds(monkeypatch):
    """One decode device for three: the best of all, but only with more rows a step than were given."""

    def fake(config, load, slo, hardware, least=None):
        step = 10 if config.prefill_workers < 3 else 20 if config.max_batch > 32 else -20
        found = step if least is None or step >= least else None
        return Goodput(found, load.rate(step), 0.95, (Probe(load.rate(step), 0.95),), slo, len(load.requests))

    monkeypatch.setattr(tuning, "goodput", fake)
    best = tune(SOME, "4xL4", SLO, EIGHT).best
    assert best.arrangement == "3 prefill + 1 decode" and best.config.max_batch > 32


def fake_goodput(config, load, slo, hardware, least=None) -> Goodput:
    step = 8 * (hardware.prefill.name == "A100") + 3 * (hardware.decode.name == "A100") + 2 * hardware.count
    if least is not None and step < least:
        return Goodput(None, 0.0, 0.0, (Probe(load.rate(least), 0.5),), slo, len(load.requests))
    return Goodput(step, load.rate(step), 0.95, (Probe(load.rate(step), 0.95),), slo, len(load.requests))


def test_unlike_devices_take_either_place_and_the_rival_has_both(monkeypatch):
    monkeypatch.setattr(tuning, "goodput", fake_goodput)
    found = tune(SOME, "A100+L4", SLO, EIGHT)
    assert {"1xA100", "1xL4", "A100+L4", "L4+A100"} == {t.hardware for t in found.trials}
    assert not found.skipped and any(t.config.colocated and t.hardware == "A100+L4" for t in found.trials)
    assert any(t.per_s is None and t.why.startswith("50% within the limits at") for t in found.trials), "beaten"


def test_what_does_not_fit_is_kept_with_its_reason():
    in_fp32 = base_of(EIGHT, Hardware.parse("A100")).replace(dtype="float32")
    found = tune(SOME[:6], "A100+L4", Slo(0.4, 0.2), in_fp32)
    assert found.best.hardware == "1xA100" and {t.hardware for t in found.skipped} == {"1xL4", "A100+L4", "L4+A100"}
    assert all("does not fit L4: weights of" in t.why for t in found.skipped if t.hardware == "1xL4")
    assert "does not fit L4" in effort(found)
    with pytest.raises(ConfigError, match="nothing of this can be simulated. .*random-llama3-70b does not fit L4"):
        tune(SOME, "2xL4", SLO, "random-llama3-70b")


def test_prices_are_the_users_and_turn_the_front(monkeypatch):
    monkeypatch.setattr(tuning, "goodput", fake_goodput)
    found = tune(SOME, "A100+L4", SLO, EIGHT, prices={"A100": 4.0, "L4": 0.5})
    assert [(t.hardware, t.cost) for t in found.front] == [("1xL4", 0.5), ("1xA100", 4.0)]
    assert ("1xA100: one for both", "4 an hour") in [row[:2] for row in front_rows(found)]
    assert {t.cost for t in tune(SOME, "2xL4", SLO, EIGHT, prices=3).trials} == {3.0, 6.0}
    with pytest.raises(ConfigError, match="prices must give a device-hour of L4 a price above 0; got None"):
        tune(SOME, "2xL4", SLO, EIGHT, prices={"A100": 4.0})


LOAD = Load.of(SOME)
TRIALS = st.lists(st.tuples(st.integers(1, 4), st.one_of(st.none(), st.integers(1, 20))), max_size=12)


def trials_of(pairs) -> tuple[Trial, ...]:
    config = Config(model=EIGHT)
    return tuple(
        Trial(config, f"{cost}xL4", "1 prefill + 1 decode", cost, float(cost), per_s, per_s and 0.9, (Probe(1.0, 0.5),))
        for cost, per_s in pairs
    )


@given(TRIALS)
def test_the_front_is_what_nothing_as_cheap_beats(pairs):
    trials = trials_of(pairs)
    found = Tuning(LOAD, SLO, Hardware.parse("4xL4"), trials)
    measured = [t for t in trials if t.per_s]
    on_front = {
        (t.cost, t.per_s) for t in measured
        if not any(o.cost <= t.cost and o.per_s >= t.per_s and (o.cost, o.per_s) != (t.cost, t.per_s) for o in measured)
    }  # fmt: skip
    assert [(t.cost, t.per_s) for t in found.front] == sorted(on_front)


def test_limits_that_no_trial_meets_name_the_closest():
    found = tune(SOME[:4], "2xL4", Slo(0.001, 0.2), EIGHT)
    assert found.front == () and found.best.attainment == 0 and found.best.per_s is None
    assert "No rate was found at which 90% of the requests meet TTFT 0.001 s" in front_picture(found).finding


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: tune(SOME, "2xL4", None, EIGHT), ConfigError, "slo must be the two limits, as Slo(ttft_s=1.0"),
        (lambda: tune(SOME, "2xL5", SLO, EIGHT), ConfigError, "hardware 'L5' is unknown"),
        (lambda: tune([], "2xL4", SLO, EIGHT), RequestError, "a workload of 0 requests"),
        (lambda: tune(SOME, "17xL4", SLO, EIGHT), ConfigError, "tune shares out up to 16 devices; 17 × L4 are 17"),
        (lambda: tune(SOME, "2xL4", SLO, "gpt"), ConfigError, "model 'gpt' has no known shape"),
        (lambda: tune(SOME[:2], "2xL4", Slo(60, 60), EIGHT), RequestError, "2 requests are too few: at"),
        (lambda: tune(SOME, "2xL4", SLO, base_of(EIGHT, Hardware.parse("L4")).replace(decode_device="cuda:0",
                                                                                 sm_split=8)), ConfigError, "sm_split"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(call, error, words):
    with pytest.raises(error, match=re.escape(words)):
        call()


def test_the_picture_has_a_point_a_measured_trial_and_the_front_in_words(found):
    picture = front_picture(found)
    lines = {line.get_label(): line for line in picture.figure.axes[0].lines}
    assert list(zip(*lines["front"].get_data(), strict=True)) == [(t.cost, t.per_s) for t in found.front]
    for colocated, (_, label) in KINDS.items():
        measured = [(t.cost, t.per_s) for t in found.trials if t.per_s and t.config.colocated == colocated]
        assert measured and list(zip(*lines[label].get_data(), strict=True)) == measured
    assert len({line.get_marker() for line in lines.values()}) == len(lines), "told apart without colour"
    assert f"{found.best.per_s:.3g} requests a second, on {found.best.words}" in picture.finding
    assert picture.finding in picture.alt
    assert [f"{t.arrangement}: {t.per_s:.3g}" for t in found.front] == [
        text.get_text() for text in picture.figure.axes[0].texts
    ]
    assert picture.png().startswith(b"\x89PNG")


def test_the_command_prints_the_front_and_writes_all_trials(tmp_path, monkeypatch):
    monkeypatch.setattr(output, "console", output.Console(width=300))
    trace, out, png = (str(tmp_path / name) for name in ("trace.csv", "rows.json", "front.png"))
    with open(trace, "w") as file:
        file.write("TIMESTAMP,ContextTokens,GeneratedTokens\n")
        file.writelines(f"2023-11-16 18:17:{second:02},3000,8\n" for second in range(10))
    limits = ["--ttft", "1.0", "--tpot", "0.12", "--hardware", "1xL4", "--trace", trace, "--lengths", "0.5"]
    done = CliRunner().invoke(main.app, ["tune", *limits, "--json", out, "--png", png])
    assert done.exit_code == 0, done.output
    content = json.loads((tmp_path / "rows.json").read_text())
    trials = [trial_of(row) for row in content["rows"]]
    front = [trials[index] for index in content["front"]]
    assert front and all(f"{t.per_s:.3g}" in done.output for t in front) and front[-1].words in done.output
    again = Load.of(workload(**{**content["workload"], "trace": tmp_path / content["workload"]["trace"]}))
    run = simulate(front[-1].config, again.at(front[-1].per_s), hardware=front[-1].hardware)
    assert run.metrics(1.0, 0.12).attainment == front[-1].attainment
    assert content["slo"] == {"ttft_s": 1.0, "tpot_s": 0.12, "share": 0.9}
    assert (tmp_path / "front.png").stat().st_size > 1000


def test_a_table_row_says_ring_and_layers():
    trials = trials_of([(2, 5)])
    config = trials[0].config.replace(route="staged", ring_slots=4, layers_per_copy=2)
    found = Tuning(Load.of(SOME), SLO, Hardware.parse("2xL4"), (Trial(config, *list(vars(trials[0]).values())[1:]),))
    [row] = front_rows(found)
    assert row == ("2xL4: 1 prefill + 1 decode", "2 devices", "5", "90%", "256", "32", "staged, ring of 4", "2")
