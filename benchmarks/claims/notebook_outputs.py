"""Stored outputs of notebooks as an origin: the numbers of a quote must stand in what a compared cell prints."""

import re
from pathlib import Path

from benchmarks.claims.claims_file import Claim
from benchmarks.claims.evidence import Finding, digest
from benchmarks.claims.text_numbers import cells, numbers_in
from benchmarks.common import known
from disagg.plan.errors import FileError

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
IGNORED = {"nbval-ignore-output", "nbval-skip"}


def stored(claim: Claim, root: Path) -> Finding:
    """FileError where the cell is missing, where nbval does not compare it, or where it does not print a number."""
    path = root / claim.file
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    index = next((i for i, cell in enumerate(code) if cell["id"] == claim.origin), None)
    if index is None or IGNORED & set(code[index]["metadata"].get("tags", ())):
        raise FileError(f"claim {claim.id}: {path.name} has no cell {claim.origin!r} whose output is compared")
    printed = _numbers(_output(code[index]))
    values = {}
    for number in (number for quote in claim.quotes for number in numbers_in(quote)):
        wanted = known(NUMBER.search(number.replace("−", "-")))[0].replace(",", "")
        digits = len(wanted.partition(".")[2])
        if not any(f"{found:.{digits}f}" == wanted for found in printed):
            raise FileError(f"claim {claim.id}: cell {claim.origin} of {path.name} does not print {number!r}")
        values[number] = float(wanted)
    sources = ["".join(cell["source"]) for cell in code[: index + 1]]
    words = f"the code of the notebook up to cell {claim.origin}"
    return Finding(
        values, f"make notebooks notebooks={claim.file}", words, digest(sources), "any: virtual clock and counts",
        why_no_interval="the same on every machine; make test runs the cell again and compares",
    )  # fmt: skip


def _output(cell: dict) -> str:
    texts = [out.get("text") or out.get("data", {}).get("text/plain", "") for out in cell["outputs"]]
    return "\n".join("".join(text) for text in texts)


def _numbers(text: str) -> list[float]:
    return [float(found.replace(",", "")) for found in NUMBER.findall(text)]
