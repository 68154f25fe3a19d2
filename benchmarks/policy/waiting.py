"""Short prompts just behind a long one: what they wait, and what the long one loses by them."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from benchmarks.common import Say, known
from benchmarks.policy_loads import MODEL, short_behind_long
from disagg.plan.config import Config
from disagg.plan.request import Request
from disagg.run.engine import Engine
from disagg.run.model.model import load_model
from disagg.show.report import Row
from disagg.trace.results import Run
from disagg.twin.simulate import simulate

ORDERS = ("fcfs", "shortest")
Serve = Callable[[Sequence[Request]], Run]


def worst_ttft(run: Run) -> float:
    return max(known(result.ttft_s) for result in run.results)


def ratios(serve: Serve, requests: list[Request]) -> tuple[float, float, str]:
    """The worst of the short ones over the same alone, the long one over itself alone, and the times."""
    long, short = requests[:1], requests[1:]
    together, first, others = serve(requests), serve(long), serve(short)
    ours = max(known(result.ttft_s) for result in together.results[1:])
    theirs, alone, own = worst_ttft(others), worst_ttft(first), known(together.results[0].ttft_s)
    times = f"short ones {ours * 1e3:.1f} against {theirs * 1e3:.1f} ms, long one {own:.2f} against {alone:.2f} s"
    return ours / theirs, own / alone, times


def pair_of_rows(name: str, serve: Callable[[int], Serve], chunk: int, smaller: int, long: int) -> Iterator[Row]:
    """Rows at the preset's chunk; the note says what a smaller one gives."""
    requests = short_behind_long(long)
    short, own, times = ratios(serve(chunk), requests)
    other_short, other_own, _ = ratios(serve(smaller), requests)
    note = f"{len(requests) - 1} behind one of {long:,} tokens, chunks of {chunk}: {times}; "
    yield Row(f"short_behind_long[{name}]", short, "× alone", 3, len(requests) - 1,
              f"{note}chunks of {smaller}: {other_short:.2f}")  # fmt: skip
    yield Row(f"long_before_short[{name}]", own, "× alone", 1.2, 1, f"chunks of {smaller}: {other_own:.3f}")


def twin_rows(say: Say, long: int = 4000, hardware: str = "2xH100") -> Iterator[Row]:
    for order in ORDERS:
        say(f"short behind long in the twin, {order}")
        config = Config.preset("streamed", policy=order, **MODEL)

        def serve(chunk: int, config: Config = config) -> Serve:
            return lambda asked: simulate(config.replace(chunk_tokens=chunk), asked, hardware=hardware, record=False)

        yield from pair_of_rows(f"twin,{order}", serve, config.chunk_tokens, config.chunk_tokens // 4, long)


def real_rows(say: Say, name: str = "smollm2", long: int = 4000) -> Iterator[Row]:
    model, blocks = load_model(name), 2 * (long // 16 + 32)
    long = min(long, model.context_limit - 2)
    config = Config.preset("streamed", model=name, prefill_blocks=blocks, decode_blocks=blocks)
    with Engine(config, model=model) as engine:
        engine.serve(short_behind_long(min(long, 256)))  # warm

        def serve(order: str) -> Callable[[int], Serve]:
            def served(chunk: int, asked: Sequence[Request]) -> Run:
                engine.retune(policy=order, chunk_tokens=chunk)
                return engine.serve(asked)

            return lambda chunk: partial(served, chunk)

        for order in ORDERS:
            say(f"short behind long with {name}, {order}")
            yield from pair_of_rows(f"real,{order}", serve(order), config.chunk_tokens, config.chunk_tokens // 4, long)
