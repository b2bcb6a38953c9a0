"""What is learned from is exactly what the assistant says and the token that ends its turn."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_tokenizers import FAMILIES, toy_tokenizer

from ds_train.config.data import LossOn
from ds_train.data.chat import render_prompt, render_sample
from ds_train.data.encode import TextEncoder
from ds_train.data.templates import ChatTemplate, choose_template
from ds_train.data.types import Completion, Conversation, Document, Message, Rendered, TokenRow
from ds_train.errors import DataError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|header|>' + m.role + '<|/header|>\\n\\n'"
    " + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|header|>assistant<|/header|>\\n\\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}"
    "{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n'"
    " + m.content | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
# name: (template, what precedes and follows the content in what is learned, content is trimmed)
STYLES: dict[str, tuple[str, str, str, bool]] = {
    "chatml": (CHATML, "", "<|im_end|>", False),
    "builtin chatml": ("chatml", "", "<|im_end|>", False),
    "builtin plain": ("plain", " ", "</s>", False),
    "llama3": (LLAMA3, "", "<|eot_id|>", True),
    "llama2": (LLAMA2, " ", " </s>", True),
    "mistral": (MISTRAL, " ", "</s>", False),
    "gemma": (GEMMA, "", "<end_of_turn>", True),
}


def _template(name: str, tokenizer: Any) -> ChatTemplate:
    template = choose_template(STYLES[name][0], {}, tokenizer)
    assert template is not None
    return template


def _encode(rendered: Rendered, tokenizer: Any) -> TokenRow:
    return TextEncoder.of(tokenizer).encode([rendered])[0]


def _learned_texts(row: TokenRow, tokenizer: Any) -> list[str]:
    """Text of every stretch of learned tokens, as the decoder adds it to what stands before."""
    borders = [i for i, (a, b) in enumerate(pairwise([False, *row.mask, False])) if a != b]
    texts = [tokenizer.decode(row.ids[:border]) for border in borders]
    return [texts[i + 1].removeprefix(texts[i]) for i in range(0, len(texts), 2)]


def _expected(style: str, content: str) -> str:
    _, before, after, trimmed = STYLES[style]
    return before + (content.strip() if trimmed else content) + after


WORDS = st.text(
    alphabet=st.sampled_from(list("ab hello world\n\n  Grüße 日本語 naïve 🙂 12+30=42.-")),
    min_size=1,
    max_size=30,
).filter(str.strip)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("style", STYLES)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
@given(turns=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3))
def test_learned_tokens_are_the_answers(
    family: str, style: str, turns: list[tuple[str, str]]
) -> None:
    tokenizer = toy_tokenizer(family)
    messages = [
        message
        for question, answer in turns
        for message in (Message("user", question), Message("assistant", answer))
    ]
    conversation = Conversation(tuple(messages))
    row = _encode(
        render_sample(conversation, "assistant", _template(style, tokenizer), ""), tokenizer
    )
    learned = _learned_texts(row, tokenizer)
    expected = [_expected(style, answer) for _, answer in turns]
    if row.boundary_tokens == 0 and family not in ("prepend",):
        assert learned == expected
    else:  # a token reaches back over the border, or the decoder adds a space after a special one
        assert len(learned) == len(expected)
        for one, wanted in zip(learned, expected, strict=True):
            assert one.endswith(wanted) and len(one) <= len(wanted) + 2
    assert row.ids.tolist().count(tokenizer.bos_token_id) == (
        len(turns) if style == "llama2" else 1
    )
    last = tokenizer.convert_ids_to_tokens(int(row.ids[-1]))
    assert last == STYLES[style][2].strip() and row.mask[-1]  # not a second EOS after it


@pytest.mark.parametrize("style", STYLES)
def test_stories260k_tokenizer(style: str, stories260k: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(stories260k)
    conversation = Conversation((Message("user", "Once upon?"), Message("assistant", "a time.")))
    row = _encode(
        render_sample(conversation, "assistant", _template(style, tokenizer), ""), tokenizer
    )
    learned = _learned_texts(row, tokenizer)
    ending = STYLES[style][2]
    text = "".join(learned)
    assert text.strip().startswith("a time.") and "Once" not in text
    # The markers of other families are plain text to this tokenizer: then EOS ends the row.
    assert text.endswith(ending if "</s>" in ending else f"{ending}</s>")
    assert row.ids.tolist().count(tokenizer.eos_token_id) == 1
    assert row.ids[-1] == tokenizer.eos_token_id and row.mask[-1]


THREE = Conversation(
    (
        Message("system", "be brief"),
        Message("user", "one?"),
        Message("assistant", "1"),
        Message("user", "two?"),
        Message("assistant", "2"),
    )
)


def _spans(conversation: Conversation, loss_on: LossOn, template: str = CHATML) -> list[str]:
    chosen = choose_template(template, {}, toy_tokenizer("bytes"))
    rendered = render_sample(conversation, loss_on, chosen, 'data.train[0].path = "x": line 7')
    return [rendered.text[a:b] for a, b in rendered.spans]


@pytest.mark.parametrize("template", [CHATML, "chatml"])
def test_policies(template: str) -> None:
    assert _spans(THREE, "assistant", template) == ["1<|im_end|>", "2<|im_end|>"]
    assert _spans(THREE, "completion", template) == ["1<|im_end|>", "2<|im_end|>"]
    assert _spans(THREE, "last_assistant", template) == ["2<|im_end|>"]
    whole = _spans(THREE, "all", template)
    assert len(whole) == 1 and whole[0].startswith("<|im_start|>system\nbe brief")


@pytest.mark.parametrize("template", [CHATML, "chatml"])
def test_flags_of_messages_override_the_policy(template: str) -> None:
    messages = list(THREE.messages)
    messages[2] = Message("assistant", "1", train=False)
    assert _spans(Conversation(tuple(messages)), "assistant", template) == ["2<|im_end|>"]
    holes = _spans(Conversation(tuple(messages)), "all", template)
    assert len(holes) == 2 and holes[0].endswith("assistant\n")
    assert holes[1].startswith("\n<|im_start|>user\ntwo?")
    messages[1] = Message("user", "one?", train=True)
    learned = _spans(Conversation(tuple(messages)), "last_assistant", template)
    assert learned == ["one?<|im_end|>", "2<|im_end|>"]


def test_completion_learns_the_completion_and_one_eos() -> None:
    tokenizer = toy_tokenizer("bytes")
    rendered = render_sample(Completion("Q: a\nA:", " yes"), "completion", None, "")
    row = _encode(rendered, tokenizer)
    assert row.ids[0] == tokenizer.bos_token_id and row.ids[-1] == tokenizer.eos_token_id
    assert _learned_texts(row, tokenizer) == [" yes</s>"]
    everything = _encode(render_sample(Completion("Q", " A"), "all", None, ""), tokenizer)
    assert everything.mask.tolist() == [False] + [True] * (len(everything.ids) - 1)
    empty = _encode(render_sample(Completion("Q", " \n"), "completion", None, ""), tokenizer)
    assert not empty.mask.any()


def test_an_eos_or_bos_in_the_text_is_not_doubled() -> None:
    tokenizer = toy_tokenizer("bytes")
    row = _encode(render_sample(Completion("<s>Q", " A</s>"), "completion", None, ""), tokenizer)
    assert row.ids.tolist().count(tokenizer.eos_token_id) == 1
    assert row.ids.tolist().count(tokenizer.bos_token_id) == 1
    assert row.mask[-1]


def test_document_is_learned_whole() -> None:
    tokenizer = toy_tokenizer("metaspace")
    row = _encode(render_sample(Document("hello world"), "all", None, ""), tokenizer)
    assert row.mask.tolist() == [False] + [True] * (len(row.ids) - 1)
    assert row.ids[-1] == tokenizer.eos_token_id


def test_no_bos_where_the_tokenizer_adds_none() -> None:
    tokenizer = toy_tokenizer("bytes_trimmed", bos=False)
    row = _encode(render_sample(Document("hello world"), "all", None, ""), tokenizer)
    assert tokenizer.decode(row.ids) == "hello world</s>"


def test_a_token_over_the_border_is_learned_and_counted() -> None:
    tokenizer = toy_tokenizer("bytes_trimmed", bos=False)
    row = _encode(render_sample(Completion("hello ", "world"), "completion", None, ""), tokenizer)
    assert row.boundary_tokens == 1
    assert _learned_texts(row, tokenizer) == [" world</s>"]


def test_a_conversation_that_ends_with_the_user_gets_no_eos() -> None:
    tokenizer = toy_tokenizer("bytes")
    open_end = Conversation((*THREE.messages, Message("user", "three?")))
    row = _encode(
        render_sample(open_end, "assistant", _template("builtin plain", tokenizer), ""), tokenizer
    )
    assert _learned_texts(row, tokenizer) == [" 1</s>", " 2</s>"]
    assert row.ids[-1] != tokenizer.eos_token_id


def test_prompt_ends_where_learning_begins() -> None:
    tokenizer = toy_tokenizer("bytes")
    for name in STYLES:
        template = _template(name, tokenizer)
        two = Conversation(THREE.messages[1:3])
        rendered = render_sample(two, "assistant", template, "")
        prompt = render_prompt(two.messages[:1], template, "")
        assert rendered.text[: rendered.spans[0][0]] == prompt


THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{{ (m.content if loop.last else m.content.split('</think>')[-1]) + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def test_a_template_that_changes_earlier_turns_is_refused_or_learned_at_the_end() -> None:
    think = Conversation(
        (
            Message("user", "one?"),
            Message("assistant", "<think>hm</think>1"),
            Message("user", "two?"),
            Message("assistant", "<think>so</think>2"),
        )
    )
    with pytest.raises(DataError, match="messages after message 2 change what stands before"):
        _spans(think, "assistant", THINKING)
    assert _spans(think, "last_assistant", THINKING) == ["<think>so</think>2<|im_end|>"]


def test_a_template_that_reorders_is_refused() -> None:
    backwards = "{% for m in messages | reverse %}{{ m.role + m.content }}{% endfor %}"
    with pytest.raises(DataError, match="message 3 does not follow the generation prompt"):
        _spans(THREE, "assistant", backwards)
    with pytest.raises(DataError, match="message 5 does not follow the generation prompt"):
        _spans(THREE, "last_assistant", backwards)


def test_without_a_token_that_ends_the_turn_only_the_content_and_a_last_eos_are_learned() -> None:
    bare = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n\n' }}{% endfor %}"
    bare += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    assert _spans(THREE, "assistant", bare) == ["1", "2"]
    tokenizer = toy_tokenizer("words")
    template = choose_template(bare, {}, tokenizer)
    row = _encode(render_sample(THREE, "assistant", template, ""), tokenizer)
    assert _learned_texts(row, tokenizer) == ["1", "2</s>"]
    unlearned = Conversation((*THREE.messages[:4], Message("assistant", "2", train=False)))
    row = _encode(render_sample(unlearned, "assistant", template, ""), tokenizer)
    assert _learned_texts(row, tokenizer) == ["1"]


def test_a_template_that_refuses_roles_is_named() -> None:
    with pytest.raises(DataError, match=r"line 7: the chat template .* roles must alternate"):
        _spans(THREE, "assistant", LLAMA2)


def test_generation_marks_that_do_not_fit_the_messages_are_refused() -> None:
    once = "{% for m in messages %}{% if loop.last %}{% generation %}{{ m.content }}"
    once += "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    with pytest.raises(DataError, match="marks 1 generated parts for 2 assistant messages"):
        _spans(THREE, "assistant", once)


def test_generation_marks_that_leave_out_the_end_of_the_turn_are_refused() -> None:
    open_end = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}"
    open_end += "{{ '<|im_end|>\\n' }}{% endfor %}"
    two = Conversation((Message("assistant", "hi"),))
    with pytest.raises(DataError, match=r'puts "<\|im_end\|>" after what it marks as generated'):
        _spans(two, "assistant", open_end)
