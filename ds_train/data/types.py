"""What a row becomes before it is tokenised: a conversation, a completion or a document.

A message carries whether it is learned from, so the loss mask is a property of the data from the
beginning and never a search through token ids at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `train` overrides the loss policy for this turn when it is not None."""

    role: str
    content: str
    train: bool | None = None
    extra: Mapping[str, Any] | None = None
    """Further keys that chat templates read: tool_calls, tool_call_id, name, reasoning_content."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns that a chat template renders."""

    messages: tuple[Message, ...]
    tools: list[Any] | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A prompt and the text that follows it; the second is learned from."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Document:
    """Raw text, all of it learned from."""

    text: str


Sample = Conversation | Completion | Document


@dataclass(frozen=True, slots=True)
class Rendered:
    """Text of a sample with the character spans [start, end) that are learned from, in order."""

    text: str
    spans: tuple[tuple[int, int], ...]
    append_eos: bool
    """The end-of-sequence token follows the text, and is learned from with the last character."""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One tokenised sample: ids int64 [len] and mask bool [len], True where learned from."""

    ids: np.ndarray
    mask: np.ndarray
    boundary_tokens: int
    """Learned tokens that begin before what is learned: the prompt alone is cut differently."""
    num_bytes: np.ndarray
    """int32 [len]: UTF-8 bytes of the text that each token stands for; those of all tokens are the
    text's. BOS and EOS, which are put around it, have none."""

    def part(self, cut: slice) -> TokenRow:
        """Some of its tokens, as a row of their own."""
        return TokenRow(self.ids[cut], self.mask[cut].copy(), 0, self.num_bytes[cut])
