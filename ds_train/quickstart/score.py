"""How often a model gives the one right answer, word for word, by plain transformers.

Nothing of ds_train takes part in this: what is scored is what a user of the exported folder gets.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

MAX_NEW_TOKENS = 24
"""The longest answer has 14 tokens."""


@dataclass(frozen=True)
class Score:
    """Greedy answers to every item of a file."""

    num_right: int
    num_items: int
    examples: tuple[tuple[str, str, str], ...]
    """(prompt, right answer, the model's answer) of the first items."""

    @property
    def accuracy(self) -> float:
        """Share of items answered word for word."""
        return self.num_right / self.num_items


@torch.no_grad()
def score_model(folder: Path, items_path: Path, num_examples: int = 3) -> Score:
    """Load a Hugging Face folder, answer every item greedily, compare with its completion."""
    items = [json.loads(line) for line in items_path.read_text(encoding="utf-8").splitlines()]
    transformers_logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = tokenizer([item["prompt"] for item in items], return_tensors="pt", padding=True)
    generated = model.generate(
        input_ids=prompts["input_ids"],
        attention_mask=prompts["attention_mask"],
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    texts = tokenizer.batch_decode(generated, skip_special_tokens=True)
    rows = [
        (item["prompt"], item["completion"].strip(), text.removeprefix(item["prompt"]).strip())
        for item, text in zip(items, texts, strict=True)
    ]
    num_right = sum(right == answer for _, right, answer in rows)
    return Score(num_right, len(rows), tuple(rows[:num_examples]))
