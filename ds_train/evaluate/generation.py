"""Many prompts continued at once: lm_eval's `generate_until`, batched by length.

Prompts of one length stand together, those that are shorter are padded on the left, and every row
is what it would be alone, but for rounding. A row ends at an end-of-sequence token, at one of its
stop strings (which is cut off, with what follows) or after `max_gen_toks` tokens.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from ds_train.engine.ranks import Ranks
from ds_train.errors import InputError
from ds_train.evaluate.generation_settings import GenerationSettings, Prompt
from ds_train.evaluate.scorer import RequestScorer
from ds_train.launch.marks import tick
from ds_train.model.head import LanguageModel

_LOOK_BACK = 8
"""Tokens before a stop string, so that it decodes as it would within the whole text."""


def generator(
    scorer: RequestScorer, tokenizer: Any, seed: int = 1234
) -> Callable[[Sequence[Prompt]], list[str]]:
    """Continues prompts with a scorer's model; a collective call where it has several ranks."""
    whole = isinstance(scorer.computes, LanguageModel) or getattr(scorer.computes, "stage", 3) < 3

    def generate(prompts: Sequence[Prompt]) -> list[str]:
        return generate_texts(
            scorer.model,
            tokenizer,
            prompts,
            max_length=scorer.max_length,
            batch_tokens=scorer.batch_tokens,
            ranks=scorer.ranks,
            device=scorer.device,
            sharded=not whole,
            seed=seed,
        )

    return generate


def generate_texts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_length: int,
    batch_tokens: int,
    ranks: Ranks,
    device: torch.device,
    sharded: bool = False,
    seed: int = 1234,
) -> list[str]:
    """The continuation of each prompt, stop strings cut off.

    Args:
        model: Hugging Face or PEFT model.
        max_length: positions that prompt and continuation have together; longer prompts lose
            their beginning.
        batch_tokens: prompts x (longest prompt + new tokens) of a batch, at most; one row may be
            more.
        ranks: each makes its share of the batches, which do not depend on their number.
        sharded: no rank has the whole model (ZeRO-3), so all make every batch together.
        seed: of sampling, for each batch anew.

    Raises:
        InputError: no room for a single token of prompt.
    """
    kept = [_cut(prompt, max_length) for prompt in prompts]
    batches = list(_batches(kept, prompts, batch_tokens, padded=not _has_virtual_tokens(model)))
    share = range(len(batches)) if sharded else range(ranks.rank, len(batches), ranks.world_size)
    found: dict[int, str] = {}
    with _own_config(model, device):
        for index in share:
            tick()
            numbers = batches[index]
            settings = prompts[numbers[0]].settings
            rows = [kept[number] for number in numbers]
            texts = _generate(model, tokenizer, rows, settings, device, seed + index)
            found.update(zip(numbers, texts, strict=True))
    if not sharded and ranks.world_size > 1:
        for text in ranks.texts(json.dumps(found)):
            found.update({int(number): one for number, one in json.loads(text).items()})
    return [found[number] for number in range(len(prompts))]


def _cut(prompt: Prompt, max_length: int) -> list[int]:
    """The end of a prompt that leaves room for the new tokens."""
    room = max_length - prompt.settings.max_new_tokens
    if room < 1:
        raise InputError(
            f"generation_kwargs.max_gen_toks = {prompt.settings.max_new_tokens:,}: leaves no room "
            f"for a prompt, as the model reads {max_length:,} tokens; set it lower."
        )
    return list(prompt.ids)[-room:]


def _has_virtual_tokens(model: Any) -> bool:
    """Prompt or prefix tuning: PEFT numbers positions itself there, padding included."""
    peft = getattr(model, "peft_config", {}).values()
    return any(getattr(one, "num_virtual_tokens", None) for one in peft)


def _batches(
    rows: Sequence[Sequence[int]], prompts: Sequence[Prompt], batch_tokens: int, *, padded: bool
) -> Iterator[list[int]]:
    """Numbers of the prompts of each batch: of the same settings, the longest first.

    Without padding, all of them have the same length too.
    """
    by_settings: dict[str, list[int]] = {}
    for number, prompt in enumerate(prompts):
        by_settings.setdefault(prompt.settings.key, []).append(number)
    for numbers in by_settings.values():
        new = prompts[numbers[0]].settings.max_new_tokens
        batch: list[int] = []
        for number in sorted(numbers, key=lambda number: (-len(rows[number]), number)):
            longest = len(rows[batch[0]]) if batch else 0
            too_many = (len(batch) + 1) * (longest + new) > batch_tokens
            if batch and (too_many or (not padded and len(rows[number]) < longest)):
                yield batch
                batch = []
            batch.append(number)
        yield batch


@contextmanager
def _own_config(model: Any, device: torch.device) -> Iterator[None]:
    """The model's own generation_config put aside: only its stop tokens are wanted.

    transformers would lay ours over its penalties and samplers.
    """
    was_training, kept = model.training, model.generation_config
    model.eval()
    model.generation_config = GenerationConfig(eos_token_id=kept.eos_token_id)
    try:
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.no_grad(),
        ):
            yield
    finally:
        model.generation_config = kept
        model.train(was_training)


def _generate(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Sequence[int]],
    settings: GenerationSettings,
    device: torch.device,
    seed: int,
) -> list[str]:
    width = max(map(len, rows))
    ends = end_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends or [0])[0]
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros_like(ids)
    for line, row in enumerate(rows):
        ids[line, width - len(row) :] = torch.tensor(row)
        mask[line, width - len(row) :] = 1
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        eos_token_id=ends or None,
        pad_token_id=pad,
        **copy.deepcopy(dict(settings.other)),
    )
    torch.manual_seed(seed)
    stops = StoppingCriteriaList([StopAtText(tokenizer, settings.until, width)])
    output = model.generate(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        generation_config=config,
        stopping_criteria=stops if settings.until else None,
    )
    return [_text(tokenizer, row, ends, settings.until) for row in output[:, width:].tolist()]


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """End-of-sequence tokens of the model and of the tokenizer."""
    of_model = model.generation_config.eos_token_id
    ends = of_model if isinstance(of_model, list) else [of_model]
    return sorted({one for one in [*ends, tokenizer.eos_token_id] if one is not None})


def _text(tokenizer: Any, ids: list[int], ends: Sequence[int], until: Sequence[str]) -> str:
    """New tokens as text, up to what ends them.

    Decoded without the prompt, as lm_eval does: some tokenizers drop the space before it then.
    """
    stop = next((place for place, one in enumerate(ids) if one in ends), len(ids))
    text = str(tokenizer.decode(ids[:stop], skip_special_tokens=True))
    for one in until:
        text = text.split(one)[0]
    return text


class StopAtText(StoppingCriteria):
    """Ends the rows whose new text has a stop string.

    Args:
        start: where the new tokens begin.
    """

    def __init__(self, tokenizer: Any, until: Sequence[str], start: int) -> None:
        self.tokenizer, self.until, self.start = tokenizer, until, start
        # a token is a byte at least
        self.reach = max((len(text.encode()) for text in until), default=0) + _LOOK_BACK

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """bool [rows]: whether each row ends here."""
        new = input_ids[:, max(self.start, input_ids.shape[1] - self.reach) :].tolist()
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        done = [any(stop in text for stop in self.until) for text in texts]
        return torch.tensor(done, device=input_ids.device)
