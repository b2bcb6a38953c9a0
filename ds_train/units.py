"""Numbers as people write them: `4k`, `2^19`, `1_000`, `80 GiB`, `500 steps`, `1B tokens`.

Each parser takes what YAML may give (int, float or text) and raises ValueError with the rule.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Unit = Literal["steps", "epochs", "tokens"]

_COUNT_SUFFIX = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_BYTE_SUFFIX = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_BYTE_SUFFIX |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)\s*([a-z]*)")


def parse_count(value: object) -> int:
    """Whole number from 4096, '4k', '2^19', '1_000' or '1.5B' (k, M, B are powers of ten)."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is not a whole number")
    if isinstance(value, str):
        text = value.strip().replace("_", "").replace(",", "")
        if power := re.fullmatch(r"([0-9]+)\s*(?:\^|\*\*)\s*([0-9]+)", text):
            return int(power[1]) ** int(power[2])
        match = _NUMBER.fullmatch(text.lower())
        if match is None or match[2] not in _COUNT_SUFFIX:
            raise ValueError(f"{value!r} is not a number; write it like 4096, 4k, 2^12 or 1.5B")
        value = float(match[1]) * _COUNT_SUFFIX[match[2]]
    if value != int(value):
        raise ValueError(f"{value!r} is not a whole number")
    return int(value)


def parse_bytes(value: object) -> int:
    """Bytes from 1024, '80 GiB' (powers of 1,024) or '80 GB' (powers of 1,000)."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is not a size")
    match = _NUMBER.fullmatch(str(value).strip().replace("_", "").lower())
    if match is None or match[2] not in _BYTE_SUFFIX:
        raise ValueError(f"{value!r} is not a size; write it like 80 GiB or 500 MB")
    return int(float(match[1]) * _BYTE_SUFFIX[match[2]])


@dataclass(frozen=True)
class Duration:
    """A stretch of training: so many steps, epochs or tokens."""

    amount: float
    unit: Unit

    def __str__(self) -> str:
        amount = int(self.amount) if self.amount == int(self.amount) else self.amount
        return f"{amount:,} {self.unit}".replace(",", "_")


def parse_duration(value: object) -> Duration:
    """Duration from '500 steps', '1 epoch', '1B tokens'; a bare whole number means steps."""
    if isinstance(value, Duration):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return _positive_duration(value, "steps", value)
    match = re.fullmatch(r"\s*(\S+)\s*(step|epoch|token)s?\s*", str(value).lower())
    if match is None:
        raise ValueError(f"{value!r} is not a duration; write it like 500 steps or 1B tokens")
    if match[2] == "epoch":
        try:
            return _positive_duration(float(match[1]), "epochs", value)
        except ValueError:
            raise ValueError(f"{value!r} is not a duration; write it like 1 epoch") from None
    unit: Unit = "steps" if match[2] == "step" else "tokens"
    return _positive_duration(parse_count(match[1]), unit, value)


def _positive_duration(amount: float, unit: Unit, value: object) -> Duration:
    if amount <= 0:
        raise ValueError(f"{value!r} must be more than 0 {unit}")
    return Duration(amount, unit)


def format_bytes(num_bytes: float) -> str:
    """Size for people: '1.50 GiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(num_bytes) < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.2f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.2f} TiB"


def format_seconds(seconds: float) -> str:
    """Time for people: '42 s', '3 min 20 s', '5 h 02 min'."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
