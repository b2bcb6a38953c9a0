"""What every section of the recipe shares: frozen, unknown keys refused, human numbers.

The string under a field is its documentation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from ds_train.units import Duration, parse_bytes, parse_count, parse_duration


class Section(BaseModel):
    """A part of the recipe. Reading it has no effect: no file, process, device or download."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        arbitrary_types_allowed=True,
        protected_namespaces=(),
    )


def is_given(section: Section, field: str) -> bool:
    """Whether a setting differs from its default; a dumped recipe holds every default."""
    value: Any = getattr(section, field)
    return bool(value != type(section).model_fields[field].get_default(call_default_factory=True))


Count = Annotated[int, BeforeValidator(parse_count), Field(ge=1)]
"""Whole number of at least 1; `4k`, `2^12` and `1_000` are understood."""

Natural = Annotated[int, BeforeValidator(parse_count), Field(ge=0)]
"""Whole number of at least 0."""

ByteCount = Annotated[int, BeforeValidator(parse_bytes), Field(ge=1)]
"""Bytes; `80 GiB` and `500 MB` are understood."""

Span = Annotated[Duration, BeforeValidator(parse_duration), PlainSerializer(str)]
"""`500 steps`, `1 epoch` or `1B tokens`; a bare number means steps."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


def _parse_length(value: object) -> float | Duration:
    """A share of the run (0.5) or a duration ('2M tokens'); never a bare number of steps."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not 0 < value <= 1:
            raise ValueError(
                f"{value!r} must be a share of the run, more than 0 and at most 1, or a length "
                "such as '500 steps' or '2M tokens'"
            )
        return float(value)
    return parse_duration(value)


def _dump_length(value: float | Duration) -> float | str:
    return str(value) if isinstance(value, Duration) else value


Length = Annotated[float | Duration, BeforeValidator(_parse_length), PlainSerializer(_dump_length)]
"""A place in the run, counted from its start: a share of it (0.5), or '2M tokens', '500 steps'."""


def _expand_home(text: str) -> str:
    return str(Path(text).expanduser()) if text.startswith("~") else text


UserPath = Annotated[str, AfterValidator(_expand_home)]
"""A path, or a name that may be one; `~` is the home folder."""

Dtype = Literal["bf16", "fp16", "fp32"]
