"""How far off the twin was found to be: the claims ledger's rows that speak of it, or that nobody has measured it."""

import json
from collections.abc import Iterator
from pathlib import Path

from disagg.plan.checks import is_number
from disagg.plan.errors import FileError

LEDGER = Path("figures/claims.json")
NOT_MEASURED = (
    "How far off it is on real devices has not been measured yet. Read orders and shapes here (which preset has the "
    "shorter gaps, where a curve bends), and no figure to its last digit."
)


def sentences(ledger: Path) -> list[str]:
    """One for each measured error: rows with "twin" in their name, wherever the ledger has them. FileError."""
    if not ledger.exists():
        return [NOT_MEASURED]
    try:
        found = [_sentence(row) for row in _rows(json.loads(ledger.read_text("utf-8")))]
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(f"{ledger} is no claims ledger: {error}") from None
    return found or [NOT_MEASURED]


def _rows(value) -> Iterator[dict]:
    if isinstance(value, dict):
        if "twin" in str(value.get("name", "")) and is_number(value.get("value"), -1e12, 1e12):
            yield value
            return
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _rows(part)


def _sentence(row: dict) -> str:
    unit, note = (str(row.get(name) or "") for name in ("unit", "note"))
    words = f"{row['name'].replace('_', ' ')}: {row['value']:.3g} {unit}".rstrip()
    return words + (f" ({note})" if note else "")
