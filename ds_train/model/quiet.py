"""Leaves out warnings of libraries about what is done on purpose; they hide what matters."""

from __future__ import annotations

import logging
import warnings

_WARNINGS = (
    # PEFT sees a Conv1D (GPT-2), sets what is right, and warns that it did.
    "fan_in_fan_out is set to False but the target",
    # modules_to_save of a tied embedding: said by model/adapter.py, and merged untied.
    "Model has `tie_word_embeddings=True` and a tied layer is part of the adapter",
    # PEFT numbers positions itself where virtual tokens stand before them, in generate too.
    "Position ids are not supported for parameter efficient tuning",
)
_LOGGED = {
    # GPT-2 and others ask for a mask wherever a row ends with pad_token; causal rows need none.
    "transformers.modeling_utils": "passing in an `attention_mask`",
}


def quieten_libraries() -> None:
    """From now on the messages listed here are not shown; all others are. May be called again."""
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name, part in _LOGGED.items():
        logger = logging.getLogger(name)
        if not any(isinstance(one, _Without) for one in logger.filters):
            logger.addFilter(_Without(part))


class _Without(logging.Filter):
    """Lets pass what does not contain a text."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self._part = part

    def filter(self, record: logging.LogRecord) -> bool:
        return self._part not in record.getMessage()
