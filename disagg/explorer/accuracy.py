"""How far off the twin was found to be: what the claims ledger says of it, or that nobody has measured it."""

import json
from pathlib import Path

from disagg.plan.errors import FileError

LEDGER = Path("figures/claims.json")
ABOUT = "twin-error"  # how ids of such claims begin
NOT_MEASURED = (
    "How far off it is on real devices has not been measured yet. Read orders and shapes here (which preset has the "
    "shorter gaps, where a curve bends), and no figure to its last digit."
)


def sentences(ledger: Path) -> list[str]:
    """What README says of each measured error, and on which machine. FileError."""
    if not ledger.exists():
        return [NOT_MEASURED]
    try:
        claims = json.loads(ledger.read_text("utf-8"))["claims"]
        found = [_sentence(claim) for claim in claims if claim["id"].startswith(ABOUT)]
    except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise FileError(f"{ledger} is no claims ledger: {type(error).__name__}: {error}") from None
    return found or [NOT_MEASURED]


def _sentence(claim: dict) -> str:
    return f"{' '.join(claim['quotes'])} ({claim['hardware']})"
