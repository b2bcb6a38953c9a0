"""The `generation_kwargs` of an lm_eval task, read and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import GenerationConfig

from ds_train.errors import InputError

DEFAULT_NEW_TOKENS = 256
"""lm_eval's, where a task doesn't say."""

_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""The names that lm_eval takes for one setting; the first that is given counts."""
_OURS = {"max_length", "eos_token_id", "pad_token_id", "stop_strings"}


@dataclass(frozen=True)
class GenerationSettings:
    """How one prompt is continued; those of one batch are alike."""

    until: tuple[str, ...] = ()
    """stop strings"""
    max_new_tokens: int = DEFAULT_NEW_TOKENS
    other: Mapping[str, Any] = field(default_factory=dict)
    """of transformers' `GenerationConfig`; greedy unless `do_sample`"""

    @classmethod
    def of(cls, settings: Mapping[str, Any], where: str) -> GenerationSettings:
        """From the `generation_kwargs` of a task.

        Raises:
            InputError: a setting that transformers does not know, or that can't be given here.
        """
        rest = dict(settings)
        until = rest.pop("until", None) or []
        until = [until] if isinstance(until, str) else list(until)
        given = [rest.pop(name) for name in _LIMITS if name in rest]
        limits = [one for one in given if one is not None]
        known = set(GenerationConfig().to_dict()) - _OURS
        for name in rest:
            if name not in known:
                raise InputError(
                    f"{where}: generation_kwargs.{name}: no such setting; there are until, "
                    "max_gen_toks, do_sample, temperature, top_p, top_k and the others of "
                    "transformers' GenerationConfig."
                )
        number = int(limits[0]) if limits else DEFAULT_NEW_TOKENS
        if number < 1:
            raise InputError(f"{where}: generation_kwargs.max_gen_toks = {number}: must be over 0.")
        stops = tuple(text for text in until if text)
        return cls(stops, number, _plain_sampling(rest))

    @property
    def key(self) -> str:
        """Equal for equal settings."""
        return json.dumps(
            [self.until, self.max_new_tokens, dict(self.other)], sort_keys=True, default=str
        )


def _plain_sampling(rest: dict[str, Any]) -> dict[str, Any]:
    """Greedy without `do_sample` and a temperature, as in lm_eval; samplers only where used."""
    temperature = float(rest.get("temperature") or 0.0)
    sampled = rest.pop("do_sample", None)
    if sampled is None:
        sampled = temperature > 0
    if not sampled or temperature == 0.0:
        rest.pop("temperature", None)
    if not sampled:
        for name in ("top_p", "top_k", "min_p", "typical_p"):
            rest.pop(name, None)
    return {"do_sample": bool(sampled), **rest}


@dataclass(frozen=True)
class Prompt:
    """Tokens to go on from."""

    ids: Sequence[int]
    settings: GenerationSettings
