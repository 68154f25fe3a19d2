"""The ledger, figures/claims.json: computed from claims.toml and its origins, and compared with the pages.

for problem in problems():
    print(problem)

Notebook: notebooks/06_twin_and_claims.ipynb.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from benchmarks.claims.arithmetic import evaluated
from benchmarks.claims.claims_file import ROOT, Claim, ClaimsFile, load
from benchmarks.claims.evidence import Finding, digest
from benchmarks.claims.measured import RECORDED, measured
from benchmarks.claims.notebook_outputs import stored
from benchmarks.claims.simulated import TWIN
from benchmarks.claims.text_numbers import Passage, numbers_in, one_line, pages, passages
from disagg.plan.errors import FileError
from disagg.trace.files import whole

REFRESH = "python -m benchmarks claims --refresh"
BACKED = {"measured": "a bench", "found": "twin or recording", "worked": "arithmetic", "cell": "a compared cell"}


def finding(claim: Claim, listed: ClaimsFile, root: Path = ROOT) -> Finding:
    """What backs a claim, computed anew. FileError."""
    if claim.kind == "measured":
        if claim.origin not in listed.measured:
            raise FileError(f"claim {claim.id}: claims.toml has no [measured.{claim.origin}]")
        return measured(root, claim.origin, listed.measured[claim.origin])
    if claim.kind == "found":
        return found(claim.origin)
    if claim.kind == "cell":
        return stored(claim, root)
    command, words = f"python -m benchmarks claims --only {claim.id}", json.dumps(claim.origin, ensure_ascii=False)
    values = evaluated(claim.origin)
    return Finding(values, command, words, digest(claim.origin), "any: arithmetic", why_no_interval="exact")


@cache
def found(name: str) -> Finding:
    """What the twin or a recording gives. FileError."""
    functions = {**TWIN, **RECORDED}
    if name not in functions:
        raise FileError(f"{name!r} is no finding; known: {', '.join(functions)}")
    return functions[name]()


def entry(claim: Claim, listed: ClaimsFile, root: Path = ROOT) -> dict:
    """A claim as the ledger keeps it. FileError."""
    backed = finding(claim, listed, root)
    quotes = claim.rendered(backed.values)
    asked = claim.asked if claim.kind != "cell" else list(backed.values)
    spread = backed.interval or {}
    interval = {name: [_short(value) for value in spread[name]] for name in asked if name in spread}
    return {
        "id": claim.id,
        "file": claim.file,
        "quotes": list(quotes),
        "numbers": [number for quote in quotes for number in numbers_in(quote)],
        "values": {name: _short(backed.values[name]) for name in asked},
        "kind": claim.kind,
        "origin": claim.origin,
        "command": backed.command,
        "workload": backed.workload,
        "workload_sha256": backed.workload_sha256,
        "baseline": claim.baseline or backed.baseline or None,
        "hardware": backed.hardware,
        "interval": interval or None,
        "why_no_interval": None if interval else backed.why_no_interval or "one value",
        "verdict": claim.verdict,
        "conditions": claim.fill(claim.conditions, backed.values) or None,
    }


def _short(value: float) -> float:
    """Six digits: libraries of other machines may round the last ones otherwise."""
    return float(f"{value:.6g}")


def kept(root: Path = ROOT) -> dict[str, dict]:
    """The ledger as it is stored, by id; empty where there is none. FileError."""
    path = root / "figures" / "claims.json"
    try:
        return {row["id"]: row for row in json.loads(path.read_text(encoding="utf-8"))["claims"]}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileError(f"{path.name}: {type(error).__name__}: {error}") from None


# ---- showing ---------------------------------------------------------------------------------------------------------


def listed() -> list[str]:
    """The ledger as it is stored: of each claim what backs it, the words that state it, and the command."""
    found = []
    for row in kept().values():
        found.append(f"{row['id']}: {row['verdict']}, by {BACKED[row['kind']]}; in {row['file']}:")
        found += [f"    {one_line(quote)}" for quote in row["quotes"]]
        found.append(f"    $ {row['command']}")
    return found


def one(name: str) -> dict:
    """A claim computed anew. FileError with the ids that there are."""
    listed = load()
    claim = next((claim for claim in listed.claims if claim.id == name), None)
    if claim is None:
        raise FileError(f"claim {name!r} is unknown; known: {', '.join(claim.id for claim in listed.claims)}")
    return entry(claim, listed)


def in_words(value: object) -> str:
    """A part of an entry as a person reads it."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {in_words(part)}" for name, part in value.items())
    return " / ".join(map(str, value)) if isinstance(value, list) else str(value)


def conclusion(found: list[str]) -> str:
    """The last line of the command."""
    if found:
        return f"{len(found)} to mend; {REFRESH} works out the ledger anew."
    numbers = sum(len(row["numbers"]) for row in kept().values())
    return f"{len(kept())} claims with {numbers} numbers: all stand in their files, and come out as they are stored."


# ---- comparing -------------------------------------------------------------------------------------------------------


def problems(root: Path = ROOT) -> list[str]:
    """Stale numbers and unbacked ones, in words; nothing where README, notebooks and origins agree."""
    listed, texts = load(root), passages(root)
    return [*_stale(listed, root), *_missing(listed, texts, root), *_unbacked(listed, texts, root)]


def _stale(listed: ClaimsFile, root: Path) -> Iterator[str]:
    """Claims whose origin gives something else than the ledger keeps."""
    before = kept(root)
    for claim in listed.claims:
        try:
            now = entry(claim, listed, root)
        except FileError as error:
            yield str(error)
            continue
        old = before.pop(claim.id, {})
        if changed := [name for name in now if now[name] != old.get(name)]:
            name = changed[0]
            yield f"stale: claim {claim.id}: {name} is {now[name]!r}, and the ledger has {old.get(name)!r}; {REFRESH}"
    yield from (f"stale: the ledger has claim {name}, and claims.toml has not; {REFRESH}" for name in before)


def _quotes(listed: ClaimsFile, root: Path) -> Iterator[tuple[str, str, str]]:
    """(file, quote, whose it is), of the ledger and of the settings."""
    for row in kept(root).values():
        yield from ((row["file"], quote, f"claim {row['id']}") for quote in row["quotes"])
    for setting in listed.settings:
        yield from ((setting.file, quote, f"the setting {setting.reason!r}") for quote in setting.quotes)


def _missing(listed: ClaimsFile, texts: list[Passage], root: Path) -> Iterator[str]:
    for file, quote, whose in _quotes(listed, root):
        if not any(text.file == file and one_line(quote) in text.text for text in texts):
            yield f"stale: {file} does not say {quote!r}, as {whose} has it"


def _unbacked(listed: ClaimsFile, texts: list[Passage], root: Path) -> Iterator[str]:
    quotes = list(_quotes(listed, root))
    for text in texts:
        spans = text.spans(quote for file, quote, _ in quotes if file == text.file)
        for number in text.numbers():
            if not any(start <= number.start() and number.end() <= stop for start, stop in spans):
                around = text.text[max(0, number.start() - 50) : number.end() + 30]
                where = f"{text.file}, cell {text.cell}" if text.cell else text.file
                yield f"unbacked: {number[0].strip()!r} in {where}: …{around}…"


# ---- refreshing ------------------------------------------------------------------------------------------------------


def refresh(root: Path = ROOT) -> list[str]:
    """Writes the ledger anew, and the pages' quotes as their templates give them now; returns what is left to do by
    hand."""
    listed, before = load(root), kept(root)
    rows, failed = [], []
    for claim in listed.claims:
        try:
            rows.append(entry(claim, listed, root))
        except FileError as error:
            failed.append(str(error))
    if failed:
        return failed
    for page in pages(root):
        _render(root, page, [pair for pair in zip(listed.claims, rows, strict=True) if pair[0].file == page], before)
    with whole(root / "figures" / "claims.json") as out:
        out.write(json.dumps({"claims": rows}, indent=1, ensure_ascii=False).encode() + b"\n")
    return problems(root)


def _render(root: Path, page: str, found: list[tuple[Claim, dict]], before: dict[str, dict]) -> None:
    """Puts each quote in the place of its template or of its last rendering, wherever their lines break."""
    old = text = (root / page).read_text(encoding="utf-8")
    for claim, row in found:
        last = before.get(claim.id, row)["quotes"] if claim.kind != "cell" else []
        for now, *others in zip(row["quotes"], claim.quotes, last, strict=False):
            for other in set(others) - {now}:
                place = re.compile(r"\s+".join(map(re.escape, other.split())))
                if match := place.search(text):
                    text = text[: match.start()] + now + text[match.end() :]
    if text != old:
        with whole(root / page) as out:
            out.write(text.encode())
