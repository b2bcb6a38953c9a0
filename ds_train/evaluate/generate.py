"""`ds-train generate`: let a model continue a prompt, given as it was in training.

A plain prompt is encoded like the prompt of a prompt/completion row: as it stands, with the
beginning-of-sequence token once where the tokenizer has one. With `chat` it becomes a user's
message in the chat template of the recipe, else of the tokenizer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, set_seed

from ds_train.data.chat import render_prompt
from ds_train.data.encode import TextEncoder
from ds_train.data.templates import choose_template
from ds_train.data.types import Message, Rendered
from ds_train.errors import InputError, ModelError
from ds_train.evaluate.model import Target, find_target, load_for_inference

Say = Callable[[str], Any]


def _say_on_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def generate_command(
    target: str,
    prompt: str,
    *,
    chat: bool = False,
    system: str | None = None,
    checkpoint: str = "latest",
    base: bool = False,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    dtype: str | None = None,
    device: str | None = None,
    say: Say = _say_on_stderr,
) -> str:
    """Print the completion alone on stdout and return it; remarks go to stderr.

    Args:
        target: run, adapter folder, model folder or hub name.
        prompt: text; `-` reads it from stdin.
        system: with chat, what the system message says.
        temperature: 0 takes the most likely token each time.

    Raises:
        InputError: settings out of range, a prompt too long or empty; ModelError: no chat template.
    """
    _check_settings(max_new_tokens, temperature, top_p)
    text = sys.stdin.read() if prompt == "-" else prompt
    found = find_target(target, checkpoint, base)
    model, tokenizer = load_for_inference(found, dtype=dtype, device=device, say=say)
    ids = encode_prompt(found, tokenizer, text, chat=chat, system=system)
    if not ids:
        raise InputError("the prompt is empty, and the tokenizer has no token to begin with.")
    completion = complete(
        model,
        tokenizer,
        ids,
        max_new_tokens=_room(model, len(ids), max_new_tokens, say),
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
    print(completion)
    return completion


def _check_settings(max_new_tokens: int, temperature: float, top_p: float) -> None:
    if max_new_tokens < 1:
        raise InputError(f"--max-new-tokens {max_new_tokens}: must be at least 1")
    if temperature < 0:
        raise InputError(f"--temperature {temperature}: must be 0 (greedy) or more")
    if not 0 < top_p <= 1:
        raise InputError(f"--top-p {top_p}: must be over 0 and at most 1")


def encode_prompt(
    target: Target,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    chat: bool = False,
    system: str | None = None,
) -> list[int]:
    """Ids of the prompt, as data preparation makes them."""
    if chat:
        messages = [Message("system", system)] if system is not None else []
        text = _render_chat(target, tokenizer, [*messages, Message("user", text)])
    elif system is not None:
        raise InputError("--system: only with --chat; a plain prompt has no system message.")
    rendered = Rendered(text, (), append_eos=False)
    ids: list[int] = TextEncoder.of(tokenizer).encode([rendered])[0].ids.tolist()
    return ids


def _render_chat(
    target: Target, tokenizer: PreTrainedTokenizerBase, messages: list[Message]
) -> str:
    setting, variables = None, {}
    if target.recipe is not None:
        setting = target.recipe.data.chat_template
        variables = target.recipe.data.template_kwargs
    template = choose_template(setting, variables, tokenizer)
    if template is None:
        raise ModelError(
            f"--chat: the tokenizer of {target.title} has no chat template, and no recipe names "
            "one. Leave --chat out, or train with data.chat_template."
        )
    return render_prompt(messages, template, "--chat")


def _room(model: Any, num_prompt_tokens: int, max_new_tokens: int, say: Say) -> int:
    """How many tokens may follow, within the model's positions."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is None:
        return max_new_tokens
    adapters = getattr(model, "peft_config", {}).values()
    virtual = sum(getattr(one, "num_virtual_tokens", None) or 0 for one in adapters)
    room = int(limit) - num_prompt_tokens - virtual
    if room < 1:
        raise InputError(
            f"the prompt has {num_prompt_tokens:,} tokens, and the model reads at most "
            f"{limit - virtual:,} positions. Shorten the prompt."
        )
    if room < max_new_tokens:
        say(f"generate: at most {room:,} tokens, then the model's {limit:,} positions are full")
    return min(room, max_new_tokens)


def complete(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    ids: list[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> str:
    """What the model says after `ids`, up to its end-of-sequence token, as text."""
    settings: dict[str, Any] = {"do_sample": temperature > 0}
    if temperature > 0:
        settings |= {"temperature": temperature, "top_p": top_p, "top_k": 0}
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted({*ends, eos}),
        pad_token_id=eos if pad is None else pad,
        **settings,
    )
    # Put in place of the model's own as well: transformers would lay ours over its penalties and
    # samplers (generation_config.json), of which only the stop tokens are wanted.
    model.generation_config = config
    set_seed(seed)
    device = next(model.parameters()).device
    prompt = torch.tensor([ids], device=device)
    with torch.inference_mode():
        output = model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), generation_config=config
        )
    # Decoded with the prompt: some tokenizers drop the space before a text's first word.
    before = tokenizer.decode(ids, skip_special_tokens=True)
    whole = tokenizer.decode(ids + output[0, len(ids) :].tolist(), skip_special_tokens=True)
    return str(whole)[len(before) :]
