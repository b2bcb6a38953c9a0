"""Many prompts at once say what each of them says alone; stop strings, limits, adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model

from ds_train.engine.ranks import Ranks
from ds_train.errors import InputError
from ds_train.evaluate.generation import StopAtText, generate_texts, generator
from ds_train.evaluate.generation_settings import GenerationSettings, Prompt
from ds_train.evaluate.model import load_for_inference
from ds_train.evaluate.scorer import RequestScorer
from ds_train.model.head import LanguageModel
from ds_train.model.tiny import byte_tokenizer, tiny_model

ONE = Ranks(0, 0, 1)
TEXTS = ["a", "a film about bees", "ships", "the quick brown fox " * 4, "b", "maps and kings"]


def prompts(texts: list[str] = TEXTS, **settings: Any) -> list[Prompt]:
    tokenizer = byte_tokenizer()
    found = GenerationSettings.of({"max_gen_toks": 12, **settings}, "task t")
    return [Prompt(tokenizer.encode(text), found) for text in texts]


def said(model: Any, asked: list[Prompt], batch_tokens: int = 4096, **settings: Any) -> list[str]:
    settings = {"max_length": 256, "ranks": ONE, "device": torch.device("cpu"), **settings}
    return generate_texts(model, byte_tokenizer(), asked, batch_tokens=batch_tokens, **settings)


def greedy(model: Any, ids: list[int], num: int) -> str:
    """Token after token, without cache or padding."""
    tokenizer, row = byte_tokenizer(), list(ids)
    for _ in range(num):
        with torch.no_grad():
            row.append(int(model(torch.tensor([row])).logits[0, -1].argmax()))
        if row[-1] == tokenizer.eos_token_id:
            return str(tokenizer.decode(row[len(ids) : -1], skip_special_tokens=True))
    return str(tokenizer.decode(row[len(ids) :], skip_special_tokens=True))


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen2", "gemma2"])
def test_batched_equals_alone_equals_plain_greedy(model_type: str) -> None:
    model = tiny_model(model_type)
    asked = prompts()
    batched = said(model, asked)
    assert batched == said(model, asked, batch_tokens=1)
    assert batched == [greedy(model, list(one.ids), 12) for one in asked]
    assert len(set(batched)) > 3


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules="all-linear", init_lora_weights=False),
        IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"],
            feedforward_modules=["down_proj"],
            init_ia3_weights=False,
        ),
        PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    ],
    ids=["lora", "ia3", "prompt tuning"],
)
def test_adapters(config: Any) -> None:
    torch.manual_seed(0)
    model = get_peft_model(tiny_model("llama"), config).eval()
    batched = said(model, prompts(), max_length=250)
    assert batched == said(model, prompts(), batch_tokens=1, max_length=250)
    assert batched != said(tiny_model("llama"), prompts())


def test_virtual_tokens_are_followed_by_no_padding() -> None:
    torch.manual_seed(0)
    config = PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model("llama"), config).eval()
    texts = ["one", "three", "six", "seven"]
    together = said(model, prompts(texts), max_length=250)
    assert together == [said(model, prompts([text]), max_length=250)[0] for text in texts]


def test_an_adapter_says_what_the_merged_model_says() -> None:
    torch.manual_seed(0)
    config = LoraConfig(target_modules="all-linear", init_lora_weights=False)
    model: Any = get_peft_model(tiny_model("llama"), config).eval()
    before = said(model, prompts())
    assert said(model.merge_and_unload(), prompts()) == before


def test_stop_strings_are_cut_off_with_what_follows() -> None:
    model = tiny_model("llama")
    (whole,) = said(model, prompts(["a film"], max_gen_toks=40))
    stop = whole[5:7]
    (cut,) = said(model, prompts(["a film"], max_gen_toks=40, until=["never said", stop]))
    assert cut == whole.split(stop)[0]
    assert len(cut) < len(whole)


def test_a_stop_string_may_lie_across_tokens_but_not_in_the_prompt() -> None:
    tokenizer = byte_tokenizer()
    rows = [
        tokenizer.encode(text, add_special_tokens=False) for text in ("ab|cd", "xSTOP", "STOPx")
    ]
    stop = StopAtText(tokenizer, ["STOP", "cd"], start=1)
    assert stop(torch.tensor(rows), None).tolist() == [True, True, False]


def test_rows_that_have_stopped_wait_for_the_others() -> None:
    model = tiny_model("llama")
    alone = said(model, prompts(["a", "ships"], max_gen_toks=30))
    stop = alone[0][3]
    both = said(model, prompts(["a", "ships"], max_gen_toks=30, until=[stop]))
    assert both == [text.split(stop)[0] for text in alone]


def test_settings_of_one_batch_are_alike() -> None:
    model = tiny_model("llama")
    mixed = [*prompts(["a"], max_gen_toks=3), *prompts(["a"], max_gen_toks=9)]
    short, long = said(model, mixed)
    assert long.startswith(short)
    assert len(long) > len(short) > 0


def test_a_long_prompt_loses_its_beginning() -> None:
    model = tiny_model("llama")
    asked = prompts(["x" * 300 + "a film"])
    (ids,) = [one.ids for one in asked]
    assert said(model, asked) == [greedy(model, list(ids)[-(256 - 12) :], 12)]


def test_sampling_depends_on_the_seed_only() -> None:
    model = tiny_model("llama")
    asked = prompts(do_sample=True, temperature=1.0, top_p=0.9)
    state = torch.get_rng_state()
    first = said(model, asked)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(5)
    assert said(model, asked) == first
    assert said(model, asked, seed=7) != first


def test_the_model_is_left_as_it_was() -> None:
    model: Any = tiny_model("llama").train()
    model.generation_config.repetition_penalty = 3.0
    kept = model.generation_config
    scorer = RequestScorer(LanguageModel(model), ONE, max_length=256)
    loud = generator(scorer, byte_tokenizer())(prompts())
    assert model.generation_config is kept
    assert model.training
    # the penalty of generation_config.json is not laid under what a task asks
    assert loud == said(tiny_model("llama"), prompts())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"until": ["x"], "max_gen_toks": 0}, r"task t: generation_kwargs.max_gen_toks = 0: must"),
        ({"num_beems": 3}, r"task t: generation_kwargs.num_beems: no such setting"),
        ({"max_length": 3}, r"generation_kwargs.max_length: no such setting"),
    ],
)
def test_settings_that_are_wrong(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GenerationSettings.of(settings, "task t")


def test_settings_as_lm_eval_reads_them() -> None:
    found = GenerationSettings.of({"until": "\n", "max_tokens": 7, "temperature": 0.0}, "t")
    assert found == GenerationSettings(("\n",), 7, {"do_sample": False})
    found = GenerationSettings.of({"temperature": 0.5, "top_k": 3, "until": []}, "t")
    assert found == GenerationSettings((), 256, {"do_sample": True, "temperature": 0.5, "top_k": 3})
    # greedy without a word about it: samplers have nothing to do
    found = GenerationSettings.of({"do_sample": False, "top_p": 0.3}, "t")
    assert found.other == {"do_sample": False}


def test_no_room_for_a_prompt() -> None:
    with pytest.raises(InputError, match=r"max_gen_toks = 256: leaves no room for a prompt, as"):
        said(tiny_model("llama"), prompts(max_gen_toks=256))


def test_what_lm_eval_s_own_model_says(stories260k: Path, shared_dir: Path) -> None:
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    instance = pytest.importorskip("lm_eval.api.instance")
    model, tokenizer = load_for_inference(stories260k, dtype="fp32", say=lambda text: None)
    path = shared_dir / "golden" / "lm_eval" / "data" / "mr_test.jsonl"
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()[:16]]
    settings = {"until": [".", "\n"], "max_gen_toks": 24, "do_sample": False}
    theirs = huggingface.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8)
    requests = [
        instance.Instance("generate_until", {}, (text, dict(settings)), i, ("t", i, 1))
        for i, text in enumerate(texts)
    ]
    expected = theirs.generate_until(requests, disable_tqdm=True)
    scorer = RequestScorer(LanguageModel(model).eval(), ONE, max_length=512)
    asked = [Prompt(tokenizer.encode(text), GenerationSettings.of(settings, "t")) for text in texts]
    assert generator(scorer, tokenizer)(asked) == expected
