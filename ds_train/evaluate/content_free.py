"""Documents of lm_eval tasks without content, for contextual calibration.

The columns that a question is made of are replaced by texts that say nothing ("N/A", "",
"[MASK]"); its words around them, its choices and its demonstrations stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2
import jinja2.meta

from ds_train.errors import InputError
from ds_train.fewshot.calibration import CONTENT_FREE

Document = Mapping[str, Any]


def content_free_documents(task: Any, doc: Document) -> list[dict[str, Any]]:
    """The document with each of CONTENT_FREE in place of the texts that its question is made of.

    Raises:
        InputError: the question is made of no column of text that the answers leave alone.
    """
    columns = _question_columns(task, doc)
    where = f"task {task.config.task}: calibration = contextual"
    if not columns:
        raise InputError(
            f"{where}: its question (doc_to_text) is made of no column of text that its choices "
            "are not made of too, so there is nothing to replace; take batch, pmi or none."
        )
    documents = [{**doc, **dict.fromkeys(columns, text)} for text in CONTENT_FREE]
    try:
        texts = [task.doc_to_text(one) for one in documents]
    except Exception as error:  # the task's own function, which may fail with anything
        raise InputError(
            f'{where}: its doc_to_text fails on a document with "" in {", ".join(sorted(columns))} '
            f"({type(error).__name__}: {error}); take batch, pmi or none."
        ) from error
    if len(set(texts)) == 1:
        raise InputError(
            f"{where}: its question stays the same whatever stands in "
            f"{', '.join(sorted(columns))}; take batch, pmi or none."
        )
    if any(task.doc_to_choice(one) != task.doc_to_choice(doc) for one in documents):
        raise InputError(
            f"{where}: its choices change with {', '.join(sorted(columns))}, which its question "
            "is made of; take batch, pmi or none."
        )
    return documents


def _question_columns(task: Any, doc: Document) -> set[str]:
    """Columns of text that the question is made of and the answers are not."""
    texts = {name for name, value in doc.items() if isinstance(value, str)}
    question = _columns(task.config.doc_to_text, texts)
    for answer in (task.config.doc_to_choice, task.config.doc_to_target):
        if isinstance(answer, str):
            question -= _columns(answer, texts)
    return question


def _columns(template: Any, texts: set[str]) -> set[str]:
    """Columns that a template reads; of a function it can't be known, so all of them."""
    if not isinstance(template, str):
        return set(texts)
    if template in texts:
        return {template}
    parsed = jinja2.Environment(autoescape=False).parse(template)
    return texts & jinja2.meta.find_undeclared_variables(parsed)
