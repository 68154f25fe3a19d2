"""The scenes of the course: what each chapter's instrument turns. They need the standard library alone, so that a
browser can play them too. `SCENES` names them by chapter.
"""

from collections.abc import Callable, Sequence
from typing import Any

from disagg.plan.config import Config
from disagg.plan.errors import ConfigError
from disagg.plan.link import Link
from disagg.plan.request import Request
from disagg.show.plots.summaries import milliseconds, plural
from disagg.show.scene import Curve, Menu, Numbers, Scene, Setup
from disagg.trace.law import Law
from disagg.trace.metrics import Percentiles
from disagg.trace.results import Run
from disagg.trace.spans import Span
from disagg.twin.hardware import DEVICES, Costs, Hardware
from disagg.twin.model_shapes import sizes_of
from disagg.twin.simulate import simulate
from disagg.twin.simulated_engine import Speeds
from disagg.twin.work import prefill_work, step_work

MB_PER_S = (2, 5, 10, 20, 50, 100, 200)
MS = 1_000_000  # ns


def of(title: str, controls: dict, world: Callable[..., Setup], **more: Any) -> Scene:
    """A scene whose worlds run on the round costs of `Speeds`."""
    return Scene(title, controls, lambda **s: simulate((w := world(**s)).config, w.requests), world=world, **more)


def asked(prompt: int, new: int, at_s: float = 0.0) -> Request:
    return Request([7] * prompt, new, at_s, ignore_eos=True)


# ---- 00: one request over a link -------------------------------------------------------------------------------------


def _one_request(link: float) -> Setup:
    return Setup(Config.preset("streamed", link=1e6 * link), [asked(113, 6)])


ONE_REQUEST = of(
    "One request over a link you choose", {"link": Numbers("link, MB/s", 20, MB_PER_S)}, _one_request, part="link"
)


# ---- 01: rows and chunks under both roofs ----------------------------------------------------------------------------


def _readers(rows: int, chunk: int, device: str) -> Run:
    """Rows that decode, and a prompt of 2,048 tokens that comes in chunks, twenty steps later."""
    gpu = {"dtype": "bfloat16", "prefill_device": "cuda", "decode_device": "cuda", "block_size": 16}
    config = Config.preset("colocated", model="random-llama3-8b", chunk_tokens=chunk, max_batch=64, **gpu)
    step_s = Costs(sizes_of("random-llama3-8b", "bfloat16"), DEVICES[device.lower()]).step_s(rows, 48 * rows)
    requests = [asked(32, 48) for _ in range(rows)] + [asked(2048, 2, 20 * step_s)]
    return simulate(config, requests, hardware=f"1x{device}")


def _roofs(run: Run, rows: int, chunk: int, device: str) -> Curve:
    """Speed over FLOPs a byte: below the ridge memory is the limit, above it compute."""
    found, sizes = DEVICES[device.lower()], sizes_of("random-llama3-8b", "bfloat16")
    flops_per_s, bytes_per_s = found.flops_per_s, found.bytes_per_s
    ridge, low, high = flops_per_s / bytes_per_s, 0.5, 4000.0
    points = {}
    for name, work in (
        (f"step of {plural(rows, 'row')}", step_work(sizes, [48] * rows)),
        (f"chunk of {chunk}", prefill_work(sizes, chunk)),
    ):
        points[name] = work.intensity, min(flops_per_s, work.intensity * bytes_per_s) / 1e12
    memory = [(low, low * bytes_per_s / 1e12), (ridge, flops_per_s / 1e12)]
    compute = [(ridge, flops_per_s / 1e12), (high, flops_per_s / 1e12)]
    return Curve("FLOPs for every byte", "TFLOP/s at most", {"memory": memory, "compute": compute}, points, log=True)


def _chunk_facts(run: Run, rows: int, chunk: int, device: str) -> list[tuple[str, str]]:
    passes = [span for span in run.timeline.spans if span.kind == "prefill" and rows in _numbers(run, span.requests)]
    return [("passes of the long prompt", str(len(passes))), ("its TTFT", milliseconds(run.results[-1].ttft_s or 0))]


def _numbers(run: Run, requests: Sequence[int]) -> set[int]:
    return {index for index, result in enumerate(run.results) if result.request in requests}


CHUNKS = Scene(
    "A long prompt comes while rows decode",
    {
        "rows": Numbers("rows that decode", 8, (1, 2, 4, 8, 16, 32, 48)),
        "chunk": Numbers("chunk, tokens", 512, (64, 128, 256, 512, 1024, 2048)),
        "device": Menu("device", "L4", {name: name for name in ("L4", "A100", "H100")}),
    },
    _readers,
    _chunk_facts,
    _roofs,
    part="decode",
)


# ---- 02: your own crowd ----------------------------------------------------------------------------------------------

ARRANGED = {
    "split": "split: K/V handed off after prefill",
    "streamed": "streamed: handed off layer by layer",
    "conditional": "conditional: each request as it ends sooner",
    "two_colocated": "two_colocated: each device does everything",
}


def _crowd(preset: str, rate: float, prompt: int, answer: int, link: float) -> Setup:
    lengths = (0.5, 1.5, 0.75, 1.25)  # of the prompt: the same crowd for everybody
    crowd = [asked(round(prompt * lengths[i % 4]), answer, i / rate) for i in range(12)]
    return Setup(Config.preset(preset, link=1e6 * link), crowd)


def _against_rival(run: Run, preset: str, **crowd: Any) -> list[tuple[str, str]]:
    rival = "two_colocated" if preset != "two_colocated" else "split"
    world = _crowd(rival, **crowd)
    other = simulate(world.config, world.requests, record=False)
    ttft = Percentiles.of_each([[result.ttft_s] for result in other.results if result.ttft_s is not None])
    found = [("its longest gap after token 2", _later(run)), (f"{rival}: TTFT", milliseconds(ttft.p50 or 0))]
    return [*found, (f"{rival}: longest gap after token 2", _later(other))]


def _later(run: Run) -> str:
    """The longest gap, those that hold a hand-off left out."""
    gaps = [gap for result in run.results for gap in result.itl_s[1:]]
    return milliseconds(max(gaps)) if gaps else "–"


CROWD = of(
    "Your own crowd: twelve requests",
    {
        "preset": Menu("arrangement", "split", ARRANGED),
        "rate": Numbers("arrivals a second", 1, (0.25, 0.5, 1, 1.5, 2, 3, 5)),
        "prompt": Numbers("prompt, tokens", 200, (20, 50, 100, 200, 400, 800)),
        "answer": Numbers("answer, tokens", 32, (2, 4, 8, 16, 32, 64)),
        "link": Numbers("link, MB/s", 50, MB_PER_S),
    },
    _crowd,
    figures=_against_rival,
)


# ---- 03: can the copy hide? ------------------------------------------------------------------------------------------

C_MS, TOKENS = 10, 96  # compute of a layer, whatever the number of layers; tokens of the prompt
BLOCKS = TOKENS // 16
LAYER_BYTES = TOKENS * 1536


def _hand_off(layers: int, x: float, tail: int, group: int, fixed: int) -> Run:
    speeds = Speeds(layers, layers * 1536, 0, C_MS * MS * layers // TOKENS, tail=tail * MS)
    link = Link(LAYER_BYTES / (x / 1e3), fixed_s=fixed / 1e3)
    config = Config.preset("streamed", link=link, layers_per_copy=min(group, layers))
    return simulate(config, [asked(TOKENS, 4)], speeds)


def _real_hand_off(layers: int, x: float, tail: int, group: int, fixed: int) -> Setup:
    """What a real model takes of it: c/x and the layers of a copy. Its layers and its tail are its own."""
    return Setup(Config.preset("streamed", link=Link.ratio(C_MS / x), layers_per_copy=group), [asked(TOKENS, 4)])


def _law(run: Run, layers: int, **settings: Any) -> Curve:
    """H over c/x for these layers, without and with tail and groups; and where the run stands."""
    ratios = [0.05 * step for step in range(1, 81)]

    def hidden(ratio: float, **more: Any) -> float:
        return Law(layers, C_MS / 1e3, (C_MS / 1e3 / ratio,), **more).hidden

    lines = {f"{layers} layers": [(ratio, hidden(ratio)) for ratio in ratios]}
    if settings["tail"] or settings["group"] > 1:
        asked_for = _law_of(layers, **settings)
        more = {"tail_s": asked_for.tail_s, "layers_per_copy": asked_for.layers_per_copy}
        lines["with tail and groups"] = [(ratio, hidden(ratio, **more)) for ratio in ratios]
    found = run.overlap(0)
    law = _law_that_holds(run, layers=layers, **settings)
    copying_s = found.transfer_s / layers  # of a layer: its share of all copying, fixed costs too
    here = law.compute_s / copying_s if law and copying_s else 0.0
    return Curve("c/x: the link is faster to the right", "H", lines, {"this run": (here, found.hidden or 0.0)})


def _law_of(layers: int, x: float, tail: int, group: int, fixed: int) -> Law:
    group = min(group, layers)
    copies = -(-layers // group)
    return Law(layers, C_MS / 1e3, ((x + fixed * copies / layers) / 1e3,), tail / 1e3, group)


def _law_that_holds(run: Run, **settings: Any) -> Law | None:
    """That of the settings; of a real run, whose layers and c are its own, that of what it measured."""
    return _law_of(**settings) if str(run.machine).startswith("virtual clock") else run.law(0)


def _law_facts(run: Run, **settings: Any) -> list[tuple[str, str]]:
    law = _law_that_holds(run, **settings)
    if law is None:
        return []
    words = "the law says E" if law.copies * law.layers_per_copy == law.layers else "the law, were all copies alike: E"
    return [(words, milliseconds(law.exposed_s)), ("copies", str(len(run.timeline.hand_off(0))))]


HAND_OFF = Scene(
    "Can the copy hide? A layer's compute c is 10 ms",
    {
        "layers": Numbers("layers L", 30, (2, 8, 12, 24, 28, 30, 48, 80)),
        "x": Numbers("a layer's copy x, ms", 14, (2.5, 4, 5, 6, 8, 10, 12, 14, 16, 20, 40)),
        "tail": Numbers("tail, ms", 0, (0, 4, 8, 12, 20, 40)),
        "group": Numbers("layers in each copy", 1, (1, 2, 3, 5, 6, 10, 15, 30)),
        "fixed": Numbers("fixed cost of a copy, ms", 0, (0, 1, 2, 4, 8, 16)),
    },
    _hand_off,
    _law_facts,
    _law,
    world=_real_hand_off,
    part="link",
)


# ---- 04: K/V by way of host memory -----------------------------------------------------------------------------------


def _paging(slots: int, latency: int, blocks: int, host: int, link: float) -> Setup:
    wire = Link(1e6 * link, latency_s=latency / 1e3)
    config = Config.preset("paged", ring_slots=slots, decode_blocks=blocks, host_blocks=host, link=(wire, wire))
    return Setup(config, [asked(40 + 24 * (i % 3), 30, 0.25 * i) for i in range(6)])


def _crossing(run: Run, slots: int, latency: int, blocks: int, host: int, link: float) -> Curve:
    """What a request that loses its blocks costs by its tokens: there and back over the link, or prefill again."""
    speeds = Speeds()
    tokens = range(8, 201, 8)
    fetch = [(n, 2 * (n * speeds.token_bytes / (1e6 * link) + latency / 1e3) * 1e3) for n in tokens]
    again = [(n, (speeds.prefill_pass + n * speeds.prefill_token + speeds.tail) / MS) for n in tokens]
    chosen = {}
    for choice in run.choices:
        cost = choice.spill_ns if choice.arm.value == "spill" else choice.recompute_ns
        chosen[f"request {choice.request}: {choice.arm.value}"] = (choice.tokens, (cost or 0) / MS)
    lines = {"spill and fetch": fetch, "compute again": again}
    return Curve("tokens of a request that loses its blocks", "ms", lines, dict(list(chosen.items())[:4]))


def _paging_facts(run: Run, **settings: Any) -> list[tuple[str, str]]:
    names = {"preempted": "lost their blocks", "parked": "parked", "fetches": "fetched", "recomputes": "computed again"}
    held = {pool: most for pool, most in run.peak_blocks.items() if most}
    found = [(words, str(run.counts[name])) for name, words in names.items() if name in run.counts]
    return [*found, ("most blocks held", ", ".join(f"{pool.split()[0]} {most}" for pool, most in held.items()))]


PAGING = of(
    "K/V by way of host memory: six requests",
    {
        "slots": Numbers("ring slots", 4, (1, 2, 3, 4, 8, 16)),
        "latency": Numbers("latency, ms", 0, (0, 1, 2, 5, 10, 20)),
        "blocks": Numbers("decode blocks", 16, (10, 12, 14, 16, 20, 24, 32, 48)),
        "host": Numbers("host blocks", 64, (0, 8, 16, 32, 64)),
        "link": Numbers("link, MB/s", 50, MB_PER_S),
    },
    _paging,
    figures=_paging_facts,
    curve=_crossing,
    part="host",
)


# ---- 05: who shares a step? ------------------------------------------------------------------------------------------

TAIL = (24, 40, 18, 160, 30, 22, 64, 28, 420, 20, 36, 90)  # tokens of prompts: mostly short, a few long


def _batch(first: int, second: int, target: int, places: int, policy: str) -> Setup:
    bins = tuple(sorted({edge for edge in (first, second) if edge}))
    limit = target / 1e3 if target else None
    config = Config.preset("dynamic", bins=bins, itl_target_s=limit, max_batch=places, policy=policy)
    return Setup(config, [asked(length, 16 + 8 * (i % 3), 0.1 * i) for i, length in enumerate(TAIL)])


def _batch_facts(run: Run, **settings: Any) -> list[tuple[str, str]]:
    steps = [span for span in run.timeline.spans if span.kind == "decode"]
    rows = max((span.count for span in steps), default=0)
    return [
        ("padding", f"{run.padding.waste:.0%}"),
        ("steps", str(len(steps))),
        ("most rows in a step", str(rows)),
        _longest(steps),
    ]


def _longest(steps: Sequence[Span]) -> tuple[str, str]:
    return "longest step", milliseconds(max((step.end_ns - step.start_ns for step in steps), default=0) / 1e9)


def _lengths(run: Run, first: int, second: int, **settings: Any) -> Curve:
    """How many of the prompts are no longer than so many tokens; the bins' ends are lines to drag."""
    ordered = sorted(TAIL)
    stairs = [(0.0, 0.0)]
    for count, length in enumerate(ordered):
        stairs += [(length, count), (length, count + 1)]
    handles = {"first": first, "second": second}
    return Curve(
        "tokens of a prompt: drag the ends of the bins", "requests up to it", {"prompts": stairs}, {}, handles=handles
    )


BATCH = of(
    "Who shares a step? Twelve requests, most of them short",
    {
        "first": Numbers("first bin ends at", 0, (0, 16, 32, 48, 64, 96, 128)),
        "second": Numbers("second bin ends at", 0, (0, 64, 96, 128, 192, 256, 512)),
        "target": Numbers("ITL target, ms (0: none)", 0, (0, 90, 110, 130, 150, 200, 300)),
        "places": Numbers("places in a step", 32, (1, 2, 4, 8, 12, 32)),
        "policy": Menu(
            "policy", "fcfs", {"fcfs": "first come", "shortest": "shortest first", "deadline": "earliest deadline"}
        ),
    },
    _batch,
    figures=_batch_facts,
    curve=_lengths,
    part="decode",
)


# ---- 06: hardware that you do not have -------------------------------------------------------------------------------

LINKS = {
    "own": "the devices' own (NVLink or PCIe)",
    "100gbe": "Ethernet, 100 Gbit/s",
    "25gbe": "Ethernet, 25 Gbit/s",
    "1gbe": "Ethernet, 1 Gbit/s",
}


def _predicted(hardware: str, preset: str, link: str, rate: float, **limits: Any) -> Run:
    if preset == "two_colocated" and "+" in hardware:
        raise ConfigError("two_colocated needs two devices alike; choose 2 × L4 or 2 × H100, or another arrangement")
    gpus = {"dtype": "bfloat16", "prefill_device": "cuda", "decode_device": "cuda:1"}
    config = Config.preset(preset, model="random-llama3-8b", link=None if link == "own" else link, **gpus)
    lengths = (700, 1_600, 300, 2_400)
    requests = [asked(lengths[i % 4], 24 + 16 * (i % 3), i / rate) for i in range(16)]
    return simulate(config, requests, hardware=hardware)


def _limits(run: Run, ttft: float, tpot: int, **settings: Any) -> list[tuple[str, str]]:
    metrics = run.metrics(ttft, tpot / 1e3)
    tpot_ms = milliseconds(metrics.tpot_s.p50 or 0)
    return [("median TPOT", tpot_ms), ("within both limits", f"{metrics.attainment or 0.0:.0%}")]


def _costs_of(run: Run, hardware: str, **settings: Any) -> Curve:
    """How long a pass takes by its tokens, on the device that prefills."""
    found = Hardware.parse(hardware)
    device = found.decode if run.config.colocated else found.prefill
    costs = Costs(sizes_of("random-llama3-8b", "bfloat16"), device)
    line = [(n, 1e3 * (costs.pass_s([(0, n)]) + costs.head_s(1))) for n in range(100, 2_601, 100)]
    points = {f"{n} tokens": (n, 1e3 * (costs.pass_s([(0, n)]) + costs.head_s(1))) for n in (300, 2_400)}
    return Curve("tokens of a pass", "ms", {device.name: line}, points)


PREDICTED = Scene(
    "Hardware that you do not have: sixteen requests to a model of 8 billion parameters",
    {
        "hardware": Menu(
            "hardware", "2xA100", {f"2x{name}": f"2 × {name}" for name in ("L4", "A10", "A100", "H100", "H200")}
            | {"H100+L4": "H100 for prefill, L4 for decode"},
        ),
        "preset": Menu("arrangement", "streamed", ARRANGED),
        "link": Menu("link", "own", LINKS),
        "rate": Numbers("arrivals a second", 4, (1, 2, 4, 6, 8, 12, 16, 24)),
        "ttft": Numbers("TTFT limit, s", 1, (0.1, 0.2, 0.3, 0.5, 1, 2, 4)),
        "tpot": Numbers("TPOT limit, ms", 40, (10, 15, 20, 30, 40, 60, 100)),
    },
    _predicted,
    _limits,
    _costs_of,
)  # fmt: skip

#: By chapter; those of 07 and 08 are recordings and small worlds of their own (show/recordings, course/buglab).
SCENES = {
    "00": ONE_REQUEST,
    "01": CHUNKS,
    "02": CROWD,
    "03": HAND_OFF,
    "04": PAGING,
    "05": BATCH,
    "06": PREDICTED,
}
