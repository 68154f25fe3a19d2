"""The table: which parts fill it, and how it reads."""

from collections.abc import Callable, Iterator, Sequence

from benchmarks.report import elsewhere
from benchmarks.report.cell import ONE_SETTING, TARGETS, Cell, reached, shown
from benchmarks.report.here import Here
from disagg.show.report import Failed, LeftOut
from disagg.show.tables import table, wrapped

WIDTH = 100


def groups(here: Here) -> dict[str, Callable[[], Iterator[Cell]]]:
    """What fills the table, part by part."""
    return {
        "ran, overlap": here.overlap, "ran, gains": here.gain, "ran, one setting": here.together,
        "recorded, overlap": elsewhere.recorded_overlap, "recorded, gains": elsewhere.recorded_gains,
        "recorded, one setting": elsewhere.recorded_together, "twin, overlap": elsewhere.twin_overlap,
        "twin, gains": elsewhere.twin_gain, "twin, one setting": elsewhere.twin_together,
    }  # fmt: skip


def cells(here: Here) -> Iterator[Cell | LeftOut]:
    """Each cell when it is known; a part that fails is a row with its cause, and the others stand."""
    try:
        for name, group in groups(here).items():
            here.stand.say(name)
            try:
                yield from group()
            except Exception as error:
                here.stand.close()
                yield Failed.of(name, error)
    finally:
        here.stand.close()


def lines(rows: Sequence[Cell | LeftOut]) -> list[str]:
    """The table in WIDTH columns, what each try was, and how many of the numbers came out together."""
    found = sorted(
        (row for row in rows if isinstance(row, Cell)), key=lambda row: (list(TARGETS).index(row.claim), row.tried)
    )
    failed = [(row.name, "", "", "failed", "", "", row.reason) for row in rows if isinstance(row, LeftOut)]
    columns = "the report", "tried", "kind", "value", "beside it", "attention", "verdict"
    said = [line for text in notes(found) for line in wrapped(text, WIDTH)]
    return [*table(columns, [*map(_in_table, found), *failed], WIDTH), "", *said]


def _in_table(cell: Cell) -> tuple[str, ...]:
    beside = {**({"law": cell.law} if cell.law is not None else {}), **cell.rivals}
    words = ", ".join(f"{name} {shown(cell.claim, value)}" for name, value in beside.items())
    kernel = cell.attention.partition(" over ")[0].partition(" (")[0].removeprefix("PyTorch ")
    return cell.claim, cell.tried, cell.kind, shown(cell.claim, cell.value), words or "none", kernel, cell.verdict


def notes(found: Sequence[Cell]) -> Iterator[str]:
    tries = dict.fromkeys((c.kind, c.tried, c.setting, c.machine, c.attention) for c in found)
    yield "two_colocated and one device hand nothing off: an overlap stands beside split, in one piece."
    for kind, tried, setting, machine, attention in tries:
        yield f"{kind}, {tried}: {setting}. {machine}. Attention: {attention}."
    for kind in dict.fromkeys(cell.kind for cell in found):
        together = [cell for cell in found if (cell.kind, cell.tried) == (kind, ONE_SETTING)]
        out = [cell.claim for cell in together if reached(cell.claim, cell.value)]
        yield f"In one setting, {kind}: {len(out)} of {len(together)} came out{': ' * bool(out)}{', '.join(out)}."
