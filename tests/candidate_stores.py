"""Stores of labelled examples made by hand: prompts, templates and answers as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from small_store import make_store

from ds_train.data.examples import Examples, SampleFacts
from ds_train.data.store import TokenStore


@dataclass(frozen=True)
class Example:
    """One example: a prompt of each template, the answers, and which of them is right."""

    prompts: Sequence[Sequence[int]]
    answers: Sequence[Sequence[int]]
    gold: int
    source: int = 0


def candidate_store(examples: Sequence[Example]) -> TokenStore:
    """Every answer of every example in each of its templates; an answer's tokens are supervised."""
    ids, masks, sources, ordinals, facts = [], [], [], [], []
    for ordinal, one in enumerate(examples):
        for template, prompt in enumerate(one.prompts):
            for choice, answer in enumerate(one.answers):
                ids.append([*prompt, *answer])
                masks.append([0] * len(prompt) + [1] * len(answer))
                sources.append(one.source)
                ordinals.append(ordinal)
                text = "".join(chr(ord("a") + token % 26) for token in answer)
                facts.append(SampleFacts(ordinal, template, choice, choice == one.gold, text))
    store = make_store(ids, masks, sources)
    rows = np.array(ordinals, np.int64)
    known = Examples.of(SampleFacts.arrays(facts), store.sources, rows)
    return replace(store, ordinals=rows, examples=known)


def many_examples(
    num_examples: int, num_answers: int, num_templates: int = 1, seed: int = 0
) -> list[Example]:
    """Random prompts and answers of 1 to 4 tokens."""
    draw = np.random.default_rng(seed)

    def words(count: int) -> list[list[int]]:
        return [draw.integers(3, 90, draw.integers(1, 5)).tolist() for _ in range(count)]

    return [
        Example(words(num_templates), words(num_answers), int(draw.integers(num_answers)))
        for _ in range(num_examples)
    ]
