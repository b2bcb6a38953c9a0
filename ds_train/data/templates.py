"""Chat templates: the tokenizer's own, a builtin one by name, a file, or Jinja text.

The builtin ones mark what the assistant says with `{% generation %}`, so they can always be masked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from ds_train.errors import DataError

_NO_TOOLS = (
    "{% if message.tool_calls %}"
    "{{ raise_exception('the builtin templates have no room for tool calls') }}{% endif %}"
)
BUILTIN = {
    "chatml": "{% for message in messages %}"
    + _NO_TOOLS
    + "{{ '<|im_start|>' + message.role + '\\n' }}"
    "{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "plain": "{% for message in messages %}"
    + _NO_TOOLS
    + "{% if message.role == 'assistant' %}{{ 'Assistant:' }}"
    "{% generation %}{{ ' ' + message.content + eos_token }}{% endgeneration %}{{ '\\n\\n' }}"
    "{% elif message.role == 'system' %}{{ message.content + '\\n\\n' }}"
    "{% else %}{{ message.role | capitalize + ': ' + message.content + '\\n\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}",
}
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """Jinja text with the variables that it may read beside the messages."""

    text: str
    origin: str
    """Where it came from, for the audit."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Special tokens and data.template_kwargs."""
    special_tokens: tuple[str, ...] = ()
    """Texts of the tokenizer's special tokens, by which the end of a turn is known."""

    @property
    def marks_generation(self) -> bool:
        """True when the template itself says what the assistant generates."""
        return _GENERATION.search(self.text) is not None


def choose_template(
    setting: str | None, template_kwargs: Mapping[str, Any], tokenizer: Any
) -> ChatTemplate | None:
    """Template of the recipe, else the tokenizer's own, else None; DataError for a bad setting."""
    if setting is None:
        own = getattr(tokenizer, "chat_template", None)
        if isinstance(own, dict):  # several by name: the one for plain chats
            own = own.get("default")
        text, origin = own, "the tokenizer's own"
    elif setting in BUILTIN:
        text, origin = BUILTIN[setting], f"builtin {setting}"
    elif "{%" in setting or "{{" in setting:
        text, origin = setting, "the recipe's Jinja text"
    else:
        text, origin = _read_template(setting), f"file {Path(setting).name}"
    if text is None:
        return None
    check_syntax(text, origin)
    return ChatTemplate(
        text,
        origin,
        {**tokenizer.special_tokens_map, **template_kwargs},
        tuple(special_token_texts(tokenizer)),
    )


def check_syntax(text: str, origin: str) -> None:
    """DataError when a template is not Jinja; the whole template is parsed, nothing is run."""
    # `generation` is an extension of transformers; any block with an end serves for parsing.
    plain = re.sub(r"\{%(-?)\s*(end)?generation\s*(-?)%\}", _as_filter, text)
    try:
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)
    except jinja2.TemplateSyntaxError as error:
        raise DataError(
            f"data.chat_template: line {error.lineno} of the template ({origin}) is not valid "
            f"Jinja: {error.message}"
        ) from None


def _as_filter(match: re.Match[str]) -> str:
    tag = "endfilter" if match[2] else "filter trim"
    return f"{{%{match[1]} {tag} {match[3]}%}}"


def special_token_texts(tokenizer: Any) -> list[str]:
    """Texts that the tokenizer turns into one special token each."""
    added = [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special]
    return sorted({*tokenizer.all_special_tokens, *added})


def _read_template(setting: str) -> str:
    where = f'data.chat_template = "{setting}"'
    try:
        return Path(setting).expanduser().read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(
            f"{where}: no such file, and no builtin template; builtin: {', '.join(BUILTIN)}. "
            "It may also be Jinja text."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{where}: can't be read ({error}).") from error
