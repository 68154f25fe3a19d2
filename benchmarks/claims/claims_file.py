"""The claims and settings of claims.toml, and quotes with their numbers put in."""

import string
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import disagg
from disagg.plan.errors import FileError

ROOT = Path(disagg.__file__).parents[1]
KINDS = ("measured", "found", "worked", "cell")
VERDICTS = ("reproduced", "reproduced under conditions", "predicted only", "refuted")
SCALES = {"pc": 100, "ms": 1e3, "us": 1e6, "M": 1e-6, "G": 1e-9}


class Number(float):
    """Its format may end in a scale: format(Number(0.05), ".0fms") is "50"."""

    def __format__(self, spec: str) -> str:
        for ending, scale in SCALES.items():
            if spec.endswith(ending):
                return float.__format__(self * scale, spec.removesuffix(ending))
        return float.__format__(self, spec)


@dataclass(frozen=True)
class Claim:
    """Quotes of one file that hold numbers of one origin."""

    id: str
    file: str
    quotes: tuple[str, ...]
    kind: str
    origin: Any  # of its kind: a name, or expressions by name
    verdict: str = "reproduced"
    conditions: str = ""
    baseline: str = ""

    def rendered(self, values: Mapping[str, float]) -> tuple[str, ...]:
        """The quotes as they must stand in the file."""
        return self.quotes if self.kind == "cell" else tuple(self.fill(quote, values) for quote in self.quotes)

    def fill(self, text: str, values: Mapping[str, float]) -> str:
        """A quote or the conditions, with numbers and the verdict for braces. FileError where one is missing."""
        try:
            return text.format_map({**nested(values), "verdict": self.verdict})
        except (KeyError, ValueError, TypeError) as error:
            raise FileError(f"claim {self.id}: a quote asks for what its origin does not give: {error!r}") from None

    @property
    def asked(self) -> list[str]:
        """Names of the numbers in the quotes, as "tokens_per_s[baseline]"."""
        names = [name for quote in self.quotes for _, name, _, _ in string.Formatter().parse(quote)]
        return [name for name in dict.fromkeys(names) if name and name != "verdict"]


@dataclass(frozen=True)
class Setting:
    """Numbers that were chosen, and why they are what they are."""

    file: str
    reason: str
    quotes: tuple[str, ...]


@dataclass(frozen=True)
class ClaimsFile:
    """All of claims.toml; `measured` has, for each file of figures/measured, what a bench does not know."""

    claims: tuple[Claim, ...]
    settings: tuple[Setting, ...]
    measured: Mapping[str, Mapping] = field(default_factory=dict)


class Rows(dict):
    """Rows of one name by what stands in brackets; `own` has none."""

    own: Number | None = None

    def __format__(self, spec: str) -> str:
        return format(self.own, spec)


def nested(values: Mapping[str, float]) -> dict[str, Rows]:
    """{"a": 1, "a[b]": 2} as a format string asks for it: "{a} {a[b]}"."""
    found: dict[str, Rows] = {}
    for name, value in values.items():
        head, _, rest = name.partition("[")
        rows = found.setdefault(head, Rows())
        if rest:
            key = rest.removesuffix("]")
            rows[int(key) if key.isdecimal() else key] = Number(value)
        else:
            rows.own = Number(value)
    return found


def load(root: Path = ROOT) -> ClaimsFile:
    """Reads claims.toml of a checkout. FileError."""
    path = root / "benchmarks" / "claims" / "claims.toml"
    try:
        read = tomllib.loads(path.read_text(encoding="utf-8"))
        claims = tuple(_claim(name, row) for name, row in read.get("claim", {}).items())
        pages = read.get("setting", {}).items()
        settings = tuple(Setting(file, why, tuple(quotes)) for file, rows in pages for why, quotes in rows.items())
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
        raise FileError(f"{path.name}: {type(error).__name__}: {error}") from None
    if silent := [setting.quotes for setting in settings if not setting.reason.strip()]:
        raise FileError(f"{path.name}: settings without a reason: {silent}")
    return ClaimsFile(claims, settings, read.get("measured", {}))


def _claim(name: str, row: dict) -> Claim:
    kinds = [kind for kind in KINDS if kind in row]
    if len(kinds) != 1:
        raise FileError(f"claim {name!r} needs one of {', '.join(KINDS)}; it has {kinds or 'none'}")
    known = {field.name for field in fields(Claim)}
    if unknown := set(row) - known - set(KINDS):
        raise FileError(f"claim {name!r}: unknown {sorted(unknown)}")
    if row.get("verdict", VERDICTS[0]) not in VERDICTS:
        raise FileError(f"claim {name!r}: the verdict is one of {', '.join(VERDICTS)}; got {row['verdict']!r}")
    origin = row.pop(kinds[0])
    return Claim(**{**row, "id": name, "quotes": tuple(row["quotes"]), "kind": kinds[0], "origin": origin})
