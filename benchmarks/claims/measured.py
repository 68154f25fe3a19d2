"""Rows that a bench measured, as its `--json` wrote them to figures/measured: the origin of what one machine gave."""

import json
from collections.abc import Mapping
from pathlib import Path

from benchmarks.claims.evidence import Finding, digest
from disagg.plan.errors import FileError


def rows(root: Path, name: str) -> dict[str, float]:
    """Values of one file's rows, by name. FileError."""
    return {row["name"]: row["value"] for row in _read(root, name)["rows"]}


def measured(root: Path, name: str, told: Mapping) -> Finding:
    """`told` is what claims.toml says of the file: command, date, workload, baseline, why there is no interval."""
    read = _read(root, name)
    machine = read["machine"]
    parts = [f"{machine['cores']} cores of {machine['cpu']}" if machine.get("cores") else machine.get("cpu", "")]
    parts += machine.get("gpus", [])
    values = {row["name"]: row["value"] for row in read["rows"]}
    spread = {row["name"]: (row["low"], row["high"]) for row in read["rows"] if "low" in row}
    return Finding(
        {**_most(values), **values},
        told["command"],
        json.dumps(told["workload"], sort_keys=True),
        digest(told["workload"]),
        f"{', '.join(part for part in parts if part)}; {told['date']}",
        told.get("baseline", ""),
        spread or None,
        "" if spread else told.get("why_no_interval", "one run"),
    )


def _most(values: Mapping[str, float]) -> dict[str, float]:
    """The largest of rows that differ in brackets only, as "name[max]"."""
    most: dict[str, float] = {}
    for name, value in values.items():
        key = f"{name.partition('[')[0]}[max]"
        most[key] = max(value, most.get(key, value))
    return most


def _read(root: Path, name: str) -> dict:
    path = root / "figures" / "measured" / f"{name}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"figures/measured/{name}.json: {type(error).__name__}: {error}") from None
