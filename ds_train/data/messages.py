"""Messages of a conversation as other tools write them: OpenAI's `messages`, ShareGPT.

A message may say whether it is learned from: `train` or `training` (true, false), or `weight`
(0 or 1). Fields that only chat templates read (tool calls, names) travel along untouched.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ds_train.data.types import ROLES, Message
from ds_train.errors import DataError

_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
}
_FLAGS = ("train", "training", "weight")


def parse_openai(value: Any, place: str) -> tuple[Message, ...]:
    """Messages from [{"role": ..., "content": ...}, ...] (or the same as JSON text)."""
    messages = []
    for number, one in enumerate(_as_list(value, place, "messages")):
        where = f"{place}, message {number + 1},"
        if not isinstance(one, Mapping) or "role" not in one:
            raise DataError(f'{where} has no "role"; a message is {{"role": ..., "content": ...}}.')
        role = one["role"]
        if role not in ROLES:
            raise DataError(f'{place} has role "{role}"; known roles: {", ".join(ROLES)}.')
        extra = {
            key: item
            for key, item in one.items()
            if key not in ("role", "content", *_FLAGS) and item is not None
        }
        content = _content(one.get("content"), where, may_lack=bool(extra))
        messages.append(Message(role, content, _train_flag(one, where), extra or None))
    return tuple(messages)


def parse_sharegpt(value: Any, place: str) -> tuple[Message, ...]:
    """Messages from [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}, ...]."""
    messages = []
    for number, one in enumerate(_as_list(value, place, "conversations")):
        where = f"{place}, message {number + 1},"
        if not isinstance(one, Mapping) or "from" not in one:
            raise DataError(f'{where} has no "from"; a message is {{"from": ..., "value": ...}}.')
        role = _SHAREGPT_ROLES.get(one["from"])
        if role is None:
            known = ", ".join(_SHAREGPT_ROLES)
            raise DataError(f'{place} has role "{one["from"]}"; known roles: {known}.')
        content = _content(one.get("value"), where, may_lack=False)
        messages.append(Message(role, content, _train_flag(one, where)))
    return tuple(messages)


def parse_tools(value: Any, place: str) -> list[Any] | None:
    """Tool descriptions for the template: a list, or the same as JSON text."""
    if value is None or value == "":
        return None
    return _as_list(value, place, "tools")


def _as_list(value: Any, place: str, what: str) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise DataError(f"{place}: {what} is text that is not JSON ({error.msg}).") from None
    if not isinstance(value, list) or (not value and what != "tools"):
        raise DataError(f"{place}: {what} must be a list with at least one message.")
    return value


def _content(value: Any, where: str, *, may_lack: bool) -> str:
    """Text of a message; lists of text parts are joined."""
    if isinstance(value, str):
        return value
    if value is None and may_lack:
        return ""
    if isinstance(value, list):
        texts = [part.get("text") for part in value if isinstance(part, Mapping)]
        parts = [text for text in texts if isinstance(text, str)]
        if len(parts) == len(value):
            return "".join(parts)
        raise DataError(f"{where} has content that is not text; only text can be trained on.")
    found = "no content" if value is None else f"content {json.dumps(value, default=str)[:40]}"
    raise DataError(f"{where} has {found}; it must be text.")


def _train_flag(message: Mapping[str, Any], where: str) -> bool | None:
    for flag in _FLAGS:
        value = message.get(flag)
        if value is None:
            continue
        if isinstance(value, bool) or (flag == "weight" and value in (0, 1)):
            return bool(value)
        rule = "0 or 1" if flag == "weight" else "true or false"
        raise DataError(
            f"{where} has {flag} = {json.dumps(value, default=str)}; it must be {rule}."
        )
    return None
