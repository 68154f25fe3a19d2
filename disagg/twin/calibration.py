"""A machine's own cost model: the fit from a short run, its error, and the machine."""

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from disagg.plan import link
from disagg.plan.checks import is_number, short
from disagg.plan.errors import FileError
from disagg.trace.files import json_lines, located, whole
from disagg.trace.schema import NAME, POSITIVE, WHOLE, Field, check
from disagg.twin.hardware import Device, Fit, Hardware

VERSION = 1


@dataclass(frozen=True)
class Calibration:
    """`hardware` goes to `simulate`. Residuals are medians of |predicted / measured - 1|, by kind of work."""

    machine: str
    model: str
    hardware: Hardware
    residuals: dict[str, float]
    seen: dict[str, int]  # works that were fitted, by kind
    seconds: float  # of the run

    def __str__(self) -> str:
        off = ", ".join(f"{name} {value:.1%} of {self.seen[name]}" for name, value in self.residuals.items())
        return f"{self.model} on {self.machine}: half of the works are predicted within {off}"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file whole or not at all. FileError."""
        row = {"calibration": VERSION, **asdict(self)}
        with whole(path, check=Calibration.load) as file:
            file.write(json.dumps(row, allow_nan=False).encode() + b"\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Calibration":
        """What `save` wrote. FileError."""
        rows = [row for _, row in json_lines(Path(path))]
        try:
            if len(rows) != 1:
                raise FileError(f"one line holds a calibration; there are {len(rows)}")
            check(row := rows[0], {"calibration": WHOLE, **_fields_of(Calibration)})
            if row.pop("calibration") != VERSION:
                raise FileError(f"it is no calibration in version {VERSION}")
            check(hardware := row["hardware"], _fields_of(Hardware))
            sides = {side: _device(hardware[side]) for side in ("prefill", "decode")}
            return cls(**{**row, "hardware": Hardware(**hardware | sides)})
        except FileError as error:
            raise located(Path(path), 1, error) from None


def _device(row: dict[str, Any]) -> Device:
    check(row, _fields_of(Device))
    check(row["fit"], _fields_of(Fit))
    for name in ("link", "host_link"):
        if row[name] not in link.PRESETS:
            raise FileError(f"{name} {short(row[name])} is no preset of plan/link")
    return Device(**{**row, "fit": Fit(**row["fit"])})


def _numbers(value: Any) -> bool:
    return type(value) is dict and all(type(name) is str and is_number(x, 0, 1e18) for name, x in value.items())


def _fields_of(kind: type[Any]) -> dict[str, Field]:
    """A schema of rows of this dataclass, from the types of its fields."""
    by_type: dict[Any, Field] = {str: NAME, int: WHOLE, float: POSITIVE}
    by_type |= {dict[str, float]: _NUMBERS, dict[str, int]: _NUMBERS}
    found = {field.name: by_type.get(field.type, _OBJECT) for field in fields(kind)}
    times = [name for name in found if name == "seconds" or (name.endswith("_s") and not name.endswith("_per_s"))]
    return found | dict.fromkeys(times, _SECONDS)


_SECONDS = Field(lambda value: is_number(value, 0, 1e6), "seconds, from 0 to 1e6")
_NUMBERS = Field(_numbers, "an object of numbers, 0 or more")
_OBJECT = Field(lambda value: type(value) is dict, "an object")
