"""The ledger as `python -m benchmarks claims` shows it."""

import json

from benchmarks.claims import claims_file, ledger
from disagg.plan.errors import FileError

BACKED = {"measured": "a bench", "found": "twin or recording", "worked": "arithmetic", "cell": "a compared cell"}


COLUMNS = ("claim", "verdict", "backed by", "numbers")


def rows() -> list[tuple[str, ...]]:
    """A claim a row."""
    return [
        (row["id"], row["verdict"], BACKED[row["kind"]], ", ".join(row["numbers"])) for row in ledger.kept().values()
    ]


def one(name: str, as_json: bool = False) -> str:
    """A claim computed anew. FileError with the ids that there are."""
    all_said = claims_file.load()
    claim = next((claim for claim in all_said.claims if claim.id == name), None)
    if claim is None:
        raise FileError(f"claim {name!r} is unknown; known: {', '.join(claim.id for claim in all_said.claims)}")
    entry = ledger.entry(claim, all_said)
    if as_json:
        return json.dumps(entry, indent=1, ensure_ascii=False)
    return "\n".join(f"{field}: {_plain(value)}" for field, value in entry.items() if value)


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    if isinstance(value, list):
        return " / ".join(map(str, value))
    return str(value)


def stored() -> str:
    return (claims_file.ROOT / "figures" / "claims.json").read_text(encoding="utf-8")


def verdict(problems: list[str]) -> str:
    """The last line."""
    kept = ledger.kept()
    if problems:
        return f"{len(problems)} to mend; {ledger.REFRESH} works out the ledger anew."
    numbers = sum(len(row["numbers"]) for row in kept.values())
    return f"{len(kept)} claims with {numbers} numbers: all stand in their files, and come out as they are stored."
