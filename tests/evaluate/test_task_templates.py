"""lm_eval's templates are compiled once, and say what they say without that."""

from __future__ import annotations

import pytest
from jinja2 import UndefinedError

from ds_train.evaluate.task_templates import templates_compiled_once

utils = pytest.importorskip("lm_eval.utils")


def test_templates_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [{"text": f"line {n}\n", "choices": ["a", "b"]} for n in range(3)]
    template = "Q: {{text}}{% for one in choices %} {{one}}{% endfor %}\n"
    expected = [utils.apply_template(template, document) for document in documents]
    compiled = []
    own = utils.env.compile
    monkeypatch.setattr(utils.env, "compile", lambda *a, **k: compiled.append(1) or own(*a, **k))
    with templates_compiled_once():
        assert [utils.apply_template(template, one) for one in documents] == expected
        with pytest.raises(UndefinedError):
            utils.apply_template(template, {})
    assert len(compiled) == 1
    utils.apply_template(template, documents[0])
    assert len(compiled) == 2
