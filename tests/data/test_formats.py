"""Every format is found, mapped and converted; what can't be is said with its place."""

from __future__ import annotations

from typing import Any

import pytest

from ds_train.config.data import SourceConfig
from ds_train.data.columns import RowFormat
from ds_train.data.formats import choose_format, convert
from ds_train.data.read import Row
from ds_train.data.sources import Source
from ds_train.data.types import Completion, Conversation, Document, Message, Sample
from ds_train.errors import DataError

PLACE = 'data.train[1].path = "chats.jsonl": line 212'


def _source(**settings: Any) -> Source:
    config = SourceConfig.model_validate({"path": "chats.jsonl", **settings})
    return Source("data.train[1]", "chats.jsonl", config, "files", (), validation=False)


def _row(values: dict[str, Any]) -> Row:
    return Row(values, 0, PLACE, 0)


def choose(values: dict[str, Any], has_template: bool = True, **settings: Any) -> RowFormat:
    return choose_format(_source(**settings), _row(values), has_template=has_template)


def sample(values: dict[str, Any], has_template: bool = True, **settings: Any) -> Sample:
    form = choose(values, has_template, **settings)
    return convert(_row(values), _source(**settings), form)


CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
TWO = (Message("user", "hi"), Message("assistant", "yo"))


@pytest.mark.parametrize(
    ("values", "name", "expected"),
    [
        ({"messages": CHAT}, "messages", Conversation(TWO)),
        (
            {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]},
            "sharegpt",
            Conversation(TWO),
        ),
        ({"instruction": "hi", "input": "", "output": "yo"}, "alpaca", Conversation(TWO)),
        (
            {"instruction": "hi", "input": "x", "output": "yo"},
            "alpaca",
            Conversation((Message("user", "hi\n\nx"), TWO[1])),
        ),
        ({"question": "hi", "answer": "yo", "id": 3}, "question_answer", Conversation(TWO)),
        ({"prompt": "hi", "completion": " yo"}, "prompt_completion", Completion("hi", " yo")),
        ({"text": "hi", "meta": {}}, "text", Document("hi")),
        ({"text": "hi", "label": 3}, "classification", Completion("hi\nLabel:", " 3")),
    ],
)
def test_format_is_found_and_converted(values: dict[str, Any], name: str, expected: Sample) -> None:
    form = choose(values)
    assert form.name == name and form.how.startswith("found from the column")
    assert sample(values) == expected


def test_without_a_template_questions_are_plain_text() -> None:
    qa = {"question": "2+3?", "answer": "5"}
    assert sample(qa, has_template=False) == Completion("Question: 2+3?\nAnswer:", " 5")
    assert "no chat template" in choose(qa, has_template=False).how
    alpaca = {"instruction": "add", "input": "2 3", "output": "5"}
    prompt = "### Instruction:\nadd\n\n### Input:\n2 3\n\n### Response:\n"
    assert sample(alpaca, has_template=False) == Completion(prompt, "5")


def test_columns_map_by_name_and_by_path() -> None:
    seeds = {"id": 1, "instruction": "do", "instances": [{"input": "x", "output": "y"}]}
    columns = {"output": "instances.0.output", "input": "instances.0.input"}
    expected = Conversation((Message("user", "do\n\nx"), Message("assistant", "y")))
    assert sample(seeds, columns=columns) == expected
    mapped = {"prompt": "q", "completion": "a.text"}
    dotted = {"q": "hi", "a.text": "yo", "a": {"text": "no"}}
    assert sample(dotted, columns=mapped) == Completion("hi", "yo")


def test_classification_with_verbalizers_and_template() -> None:
    settings = {
        "columns": {"label": "category"},
        "labels": {"0": "bad", "1": "good"},
        "template": "{title}: {text} {{keep}}\nIt is",
    }
    row = {"text": "great", "category": 1, "title": "Film"}
    with pytest.raises(DataError, match=r"template: \{keep\} is no text column"):
        sample(row, **settings)
    settings["template"] = "{title}: {text} {}\nIt is"
    assert sample(row, **settings) == Completion("Film: great {}\nIt is", " good")


def test_messages_keep_flags_tools_and_extras() -> None:
    row = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "h"}, {"text": "i"}]},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}], "weight": 0},
            {"role": "tool", "content": "7", "tool_call_id": "1"},
            {"role": "assistant", "content": "yo", "train": True, "name": None},
            {"role": "assistant", "content": "no", "training": False},
        ],
        "tools": '[{"type": "function"}]',
    }
    got = sample(row)
    assert isinstance(got, Conversation) and got.tools == [{"type": "function"}]
    assert got.messages == (
        Message("user", "hi"),
        Message("assistant", "", False, {"tool_calls": [{"id": "1"}]}),
        Message("tool", "7", None, {"tool_call_id": "1"}),
        Message("assistant", "yo", True),
        Message("assistant", "no", False),
    )


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        (
            {"a": "b"},
            {},
            f"{PLACE} has the columns a, which fit no known format; set data.train[1].format",
        ),
        (
            {"question": "q", "answer": "a", "prompt": "p", "completion": "c"},
            {},
            "which fit several formats: prompt_completion, question_answer; choose one with "
            "data.train[1].format.",
        ),
        (
            {"questoin": "q", "answer": "a"},
            {"format": "question_answer"},
            f'{PLACE} has no column "question", which format question_answer needs; it has '
            "questoin, answer. Name the right one: columns: {question: questoin}",
        ),
        (
            {"question": "q", "answer": "a"},
            {"format": "prompt_completion", "columns": {"prompt": "questin"}},
            'data.train[1].columns.prompt = "questin": no such column; the columns are question, '
            "answer. Did you mean question?",
        ),
        (
            {"prompt": "q", "completion": "a"},
            {"format": "prompt_completion", "columns": {"prmpt": "prompt"}},
            "data.train[1].columns.prmpt: format prompt_completion has no such field; it has "
            "prompt, completion. Did you mean prompt?",
        ),
        (
            {"text": "q"},
            {"labels": {"0": "bad"}},
            "data.train[1].labels: only format classification has it; this source has format text.",
        ),
        ({"text": None}, {}, f'{PLACE} has null in column "text", which must be text.'),
        ({"text": 5}, {}, f'{PLACE} has the number 5 in column "text", which must be text.'),
        (
            {"text": "a", "label": "goood"},
            {"labels": {"good": "yes", "bad": "no"}},
            f'{PLACE} has the label "goood", which data.train[1].labels does not know; did you '
            "mean good? Known: good, bad.",
        ),
        (
            {"messages": [{"role": "humn", "content": "hi"}]},
            {},
            f'{PLACE} has role "humn"; known roles: system, user, assistant, tool.',
        ),
        (
            {"conversations": [{"from": "alien", "value": "hi"}]},
            {},
            f'{PLACE} has role "alien"; known roles: system, human, user, gpt, assistant, tool.',
        ),
        (
            {"messages": [{"role": "user", "content": "hi", "train": "yes"}]},
            {},
            f'{PLACE}, message 1, has train = "yes"; it must be true or false.',
        ),
        (
            {"messages": [{"role": "user"}]},
            {},
            f"{PLACE}, message 1, has no content; it must be text.",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            {},
            f"{PLACE}, message 1, has content that is not text; only text can be trained on.",
        ),
        ({"messages": []}, {}, f"{PLACE}: messages must be a list with at least one message."),
    ],
)
def test_what_can_not_be_read_is_said(
    values: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        sample(values, **settings)
    assert message in str(caught.value)


def test_a_later_row_without_the_column_is_named() -> None:
    form = choose({"prompt": "a", "completion": "b"})
    with pytest.raises(DataError) as caught:
        convert(_row({"prompt": "a"}), _source(), form)
    assert str(caught.value) == f'{PLACE} has no column "completion"; it has prompt.'
