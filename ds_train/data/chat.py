"""From a sample to text with the character spans that are learned from.

The loss mask is made while rendering, never by searching token ids afterwards:

    render(messages[:1], generation prompt)   <user>Hi<end><assistant>
    render(messages[:2])                      <user>Hi<end><assistant>Hello!<end>\\n
    learned from                                                      ^^^^^^^^^^^

The first must be a prefix of the second, and the second of the whole conversation. Where that
fails, or where the template marks what is generated itself (`{% generation %}`), nothing is
guessed: the one is an error, the other is taken as it stands. What is learned begins where the
generation prompt ends and goes through the token that ends the turn; whitespace after it is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jinja2

from ds_train.config.data import LossOn
from ds_train.data.templates import ChatTemplate
from ds_train.data.types import Completion, Conversation, Message, Rendered, Sample
from ds_train.errors import DataError

Span = tuple[int, int]
_TEMPLATE_FAULTS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError)


def render_sample(
    sample: Sample, loss_on: LossOn, template: ChatTemplate | None, place: str
) -> Rendered:
    """Text and learned spans of a sample. Without any span, nothing is learned from it."""
    if isinstance(sample, Conversation):
        if template is None:
            raise DataError(
                f"{place} is a conversation, but the tokenizer has no chat template; "
                "set data.chat_template (chatml, plain, a file, or Jinja text)."
            )
        return _render_conversation(sample, loss_on, template, place)
    if isinstance(sample, Completion):
        text = sample.prompt + sample.completion
        start = 0 if loss_on == "all" else len(sample.prompt)
        spans = ((start, len(text)),) if sample.completion.strip() else ()
        return Rendered(text, spans, append_eos=True)
    return Rendered(sample.text, ((0, len(sample.text)),) if sample.text else (), append_eos=True)


def render_prompt(messages: Sequence[Message], template: ChatTemplate, place: str) -> str:
    """The conversation so far with the generation prompt: what a model continues."""
    return _Renderer(Conversation(tuple(messages)), template, place).render(len(messages), True)


def _render_conversation(
    conversation: Conversation, loss_on: LossOn, template: ChatTemplate, place: str
) -> Rendered:
    messages = conversation.messages
    renderer = _Renderer(conversation, template, place)
    text, marked = renderer.whole()
    learned = _learned_messages(messages, loss_on)
    if loss_on == "all":
        unlearned = [i for i, message in enumerate(messages) if message.train is False]
        spans = _subtract((0, len(text)), [renderer.span(i, text, marked) for i in unlearned])
    else:
        spans = [renderer.span(i, text, marked) for i in learned]
        if learned and learned[-1] == len(messages) - 1:
            renderer.check_end(text[spans[-1][1] :])
    if messages[-1].role != "assistant":
        return Rendered(text, tuple(spans), append_eos=False)
    # Nothing is learned from whitespace after the last turn, and nothing sees it: cut it.
    learned_end = spans[-1][1] if spans and loss_on != "all" else 0
    end = max(learned_end, len(text.rstrip()))
    spans = [(a, min(b, end)) for a, b in spans if a < end]
    append_eos = not text[:end].endswith(template.special_tokens or ("\0",))
    return Rendered(text[:end], tuple(spans), append_eos)


def _learned_messages(messages: Sequence[Message], loss_on: LossOn) -> list[int]:
    """Indices of the messages learned from; a message's own flag overrides the policy."""
    assistants = [i for i, message in enumerate(messages) if message.role == "assistant"]
    by_policy = set(assistants[-1:] if loss_on == "last_assistant" else assistants)
    return [
        i
        for i, message in enumerate(messages)
        if (i in by_policy if message.train is None else message.train)
        and (message.content.strip() or message.extra)
    ]


def _subtract(whole: Span, holes: Sequence[Span]) -> list[Span]:
    """What is left of a span; holes are sorted and do not overlap."""
    edges = [whole[0], *(edge for hole in holes for edge in hole), whole[1]]
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [(start, end) for start, end in pairs if start < end]


class _Renderer:
    """Renders the first messages of one conversation, each stretch once."""

    def __init__(self, conversation: Conversation, template: ChatTemplate, place: str) -> None:
        self.messages = conversation.messages
        self.tools = conversation.tools
        self.template = template
        self.place = place
        self._dicts = [
            {**(message.extra or {}), "role": message.role, "content": message.content}
            for message in self.messages
        ]
        self._rendered: dict[tuple[int, bool], str] = {}

    def render(self, count: int, generation_prompt: bool) -> str:
        """Text of the first `count` messages."""
        key = (count, generation_prompt)
        if key not in self._rendered:
            self._rendered[key] = self._call(count, add_generation_prompt=generation_prompt)[0]
        return self._rendered[key]

    def whole(self) -> tuple[str, list[Span] | None]:
        """Text of all messages, and the spans that the template itself marks, if it does."""
        count = len(self.messages)
        if not self.template.marks_generation:
            return self.render(count, False), None
        return self._call(count, return_assistant_tokens_mask=True)

    def _call(self, count: int, **options: bool) -> tuple[str, list[Span]]:
        # At call time: transformers takes 2 s to import.
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            rendered: Any = render_jinja_template(
                conversations=[self._dicts[:count]],
                tools=self.tools,
                chat_template=self.template.text,
                **{**options, **self.template.variables},
            )
        except _TEMPLATE_FAULTS as error:
            raise DataError(
                f"{self.place}: the chat template ({self.template.origin}) refused the "
                f"conversation: {str(error).strip() or type(error).__name__}"
            ) from error
        texts, spans = rendered
        return texts[0], [(start, end) for start, end in spans[0]] if spans else []

    def span(self, index: int, whole: str, marked: list[Span] | None) -> Span:
        """Characters of `whole` that message `index` is learned in."""
        message = self.messages[index]
        if message.role == "assistant" and marked is not None:
            return self._marked_span(index, marked)
        is_assistant = message.role == "assistant"
        try:
            before = self.render(index, is_assistant)
            through = self.render(index + 1, False) if index + 1 < len(self.messages) else whole
        except DataError as error:
            raise self._unsafe(f"it can't render the conversation in parts ({error})") from error
        if not through.startswith(before):
            raise self._unsafe(f"message {index + 1} does not follow the generation prompt")
        if not whole.startswith(through):
            raise self._unsafe(f"messages after message {index + 1} change what stands before them")
        start = len(before)
        if not is_assistant:
            start = max(start, through.find(message.content.strip(), start))
        return start, self._end_of_turn(through, start, message.content)

    def _marked_span(self, index: int, marked: list[Span]) -> Span:
        assistants = [i for i, one in enumerate(self.messages) if one.role == "assistant"]
        if len(marked) != len(assistants):
            raise self._unsafe(
                f"it marks {len(marked)} generated parts for {len(assistants)} assistant messages"
            )
        return marked[assistants.index(index)]

    def check_end(self, after: str) -> None:
        """DataError when the template ends the last answer outside of what it marks."""
        if after.strip() and self.messages[-1].role == "assistant":
            raise DataError(
                f"{self.place}: the chat template ({self.template.origin}) puts "
                f'"{after.strip()}" after what it marks as generated, so the model would never '
                "learn to stop; move {% endgeneration %} behind it (data.chat_template)."
            )

    def _end_of_turn(self, through: str, start: int, content: str) -> int:
        """End of the token that ends the turn, or of the content where there is none."""
        position = through.rfind(content, start) if content else -1
        after = position + len(content)
        if position >= start and not through[after:].strip():
            return after
        return max(start, len(through.rstrip()))

    def _unsafe(self, reason: str) -> DataError:
        return DataError(
            f"{self.place}: the chat template ({self.template.origin}) can't be masked safely: "
            f"{reason}. Put {{% generation %}} ... {{% endgeneration %}} around what the assistant "
            "says in the template (data.chat_template), or try data.loss_on: last_assistant."
        )
