"""The rows of `python -m benchmarks policy`: the twin's first, then the real ones, which take minutes."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from benchmarks.common import Say, T
from benchmarks.policy import arms, decision, mixing, parking, placing, target, waiting
from disagg.plan.errors import ConfigError
from disagg.show.report import Failed, LeftOut, Row

Rows = Callable[[Say], Iterator[Row | LeftOut]]


def parts(traces: Sequence[Path]) -> dict[str, Rows]:
    return {
        "decision_us": decision.rows,
        "parking": parking.rows,
        "short_behind_long[twin]": waiting.twin_rows,
        "mixed_passes[twin]": partial(mixing.twin_rows, traces=traces),
        "chunk_price": mixing.price_rows,
        "conditional_over_best[twin]": placing.twin_rows,
        "itl_target[twin]": target.twin_rows,
        "parking[real]": parking.real_rows,
        "right_arm[stay_or_split]": arms.stay_or_split_rows,
        "right_arm[fetch_or_recompute]": arms.fetch_or_recompute_rows,
        "short_behind_long[real]": waiting.real_rows,
        "mixed_passes[real]": mixing.real_rows,
        "itl_target[real]": target.real_rows,
        "conditional_over_best[real]": placing.real_rows,
    }


def chosen(found: dict[str, T], only: str | None) -> dict[str, T]:
    """Those parts, or all of a name before its bracket; ConfigError for one that does not exist."""
    if not only:
        return found
    names = [name.strip() for name in only.split(",")]
    for name in names:
        if not any(name in (part, part.partition("[")[0]) for part in found):
            raise ConfigError(f"--only {name}: no such row; rows: {', '.join(found)}")
    return {part: rows for part, rows in found.items() if {part, part.partition("[")[0]} & set(names)}


def suite(say: Say, only: str | None = None, traces: Sequence[Path] = ()) -> Iterator[Row | LeftOut]:
    """Rows as they are measured; a part that fails is a row with the reason."""
    for name, rows in chosen(parts(traces), only).items():
        try:
            yield from rows(say)
        except Exception as error:  # the other parts are measured all the same
            yield Failed.of(name, error)
    if not only:
        yield LeftOut("worlds", "python -m benchmarks soak runs 10,000 of them")
