"""What one machine gave: rows that a bench wrote to figures/measured, numbers read off recordings in figures/data."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from benchmarks.claims.evidence import Finding, digest, digest_of_runs
from benchmarks.common import known
from disagg.plan.errors import FileError
from disagg.show import recordings
from disagg.trace.results import Run

K = TypeVar("K")


def rows(root: Path, name: str) -> dict[str, float]:
    """Values of one file's rows, by name. FileError."""
    return {row["name"]: row["value"] for row in _read(root, name)["rows"]}


def measured(root: Path, name: str, about: Mapping) -> Finding:
    """`about` is what claims.toml has about the file: command, date, workload, baseline, why there is no interval."""
    read = _read(root, name)
    machine = read["machine"]
    parts = [f"{machine['cores']} cores of {machine['cpu']}" if machine.get("cores") else machine.get("cpu", "")]
    parts += machine.get("gpus", [])
    values = {row["name"]: row["value"] for row in read["rows"]}
    spread = {row["name"]: (row["low"], row["high"]) for row in read["rows"] if "low" in row}
    return Finding(
        {**_most(values), **values},
        about["command"],
        json.dumps(about["workload"], sort_keys=True),
        digest(about["workload"]),
        f"{', '.join(part for part in parts if part)}; {about['date']}",
        about.get("baseline", ""),
        spread or None,
        "" if spread else about.get("why_no_interval", "one run"),
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


def there(runs: dict[K, Run] | recordings.Missing) -> dict[K, Run]:
    """Recorded runs. FileError where there are none, with the command that makes them."""
    if isinstance(runs, recordings.Missing):
        raise FileError(repr(runs))
    return runs


def staged_runs() -> dict[float, Run]:
    """The recorded runs of the staged route, by dial."""
    return there(recordings.staged())


def staged_law() -> Finding:
    """How far H on the staged route lies from the law, over all recorded dials: the most, in points."""
    runs = staged_runs()
    off = [100 * abs(known(run.overlap(0).hidden) - known(run.law(0)).hidden) for run in runs.values()]
    return Finding(
        {"most_off_points": max(off), "slowest_dial": max(runs)},
        f"{recordings.COMMAND} --only staged",
        "one prompt of 2,048 tokens over the staged route, at each dial",
        digest_of_runs(runs.values()),
        next(iter(runs.values())).machine,
        "the law with each run's own c, x and tail",
        {"most_off_points": (min(off), max(off))},
    )


def staged_hidden() -> Finding:
    """H over two hops at two dials: a link four times as slow as the compute, and one twice as fast."""
    runs = staged_runs()
    values = {f"hidden[{dial:g}]": known(runs[dial].overlap(0).hidden) for dial in (4.0, 0.5)}
    laws = {dial: known(runs[dial].law(0)) for dial in (4.0, 0.5)}
    values |= {f"slower[{dial:g}]": max(law.hops_s) / law.compute_s for dial, law in laws.items()}
    sha256 = digest_of_runs(runs[dial] for dial in laws)
    words, command = "one prompt of 2,048 tokens over the staged route", f"{recordings.COMMAND} --only staged"
    machine, why = runs[4.0].machine, "the run with the median H of several; the others were not kept"
    return Finding(values, command, words, sha256, machine, "none: H is a share", why_no_interval=why)


RECORDED = {"staged_law": staged_law, "staged_hidden": staged_hidden}
