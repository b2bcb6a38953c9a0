"""Labelled examples as `ds-train data` shows them: in their templates, with their wrong answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ds_train.data.store import TokenStore

_SHOWN_ANSWERS = 8


def example_of(store: TokenStore, sample: int) -> int:
    """Number of the example that a sample renders; of the sample where it stands for itself."""
    return sample if store.examples is None else int(store.examples.example[sample])


def rendering_facts(store: TokenStore, index: int) -> dict[str, Any]:
    """Which rendering of its example a sample is; empty where there is one only."""
    examples = store.examples
    if examples is None or not examples.has_renderings:
        return {}
    facts: dict[str, Any] = {}
    num_templates = int(examples.num_templates()[examples.example[index]])
    if num_templates > 1:
        facts |= {"template": int(examples.template[index]) + 1, "of_templates": num_templates}
    num_answers = int(examples.num_choices()[examples.group[index]])
    if num_answers > 1:
        facts |= {"right": bool(examples.gold[index]), "of_answers": num_answers}
    return facts


def wrong_answers(store: TokenStore, tokenizer: Any, index: int) -> dict[str, Any]:
    """The first other answers of a sample's example in its template, as they are learned from."""
    examples = store.examples
    assert examples is not None
    group = examples.group[index]
    samples = range(int(examples.group_starts[group]), int(examples.group_starts[group + 1]))
    others = [sample for sample in samples if not examples.gold[sample]]
    shown = others[:_SHOWN_ANSWERS]
    texts = [tokenizer.decode(store.tokens(one)[store.mask(one)].tolist()) for one in shown]
    return {"wrong_answers": texts, "more_wrong_answers": len(others) - len(texts)}


def samples_to_show(store: TokenStore, num: int) -> Iterator[int]:
    """The first samples; of labelled examples the right answer, in each template."""
    examples = store.examples
    if examples is None or not examples.has_renderings:
        yield from range(min(num, store.num_samples))
        return
    last = examples.first_group[min(num, examples.num_examples)]
    yield from examples.group_gold[:last].tolist()


def describe_rendering(sample: dict[str, Any]) -> Iterator[str]:
    """The facts of a rendering in words."""
    if "template" in sample:
        yield f"template {sample['template']} of {sample['of_templates']}"
    if "right" in sample:
        which = "the right" if sample["right"] else "a wrong"
        yield f"{which} one of {sample['of_answers']:,} answers"


def list_wrong_answers(sample: dict[str, Any]) -> str | None:
    """A line with the wrong answers; None where there are none to show."""
    if not sample.get("wrong_answers"):
        return None
    more = sample["more_wrong_answers"]
    rest = f" and {more:,} more" if more else ""
    return "wrong: " + " ".join(f"«{text}»" for text in sample["wrong_answers"]) + rest
