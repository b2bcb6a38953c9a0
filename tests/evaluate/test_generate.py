"""Generation continues the prompt as training saw it, and prints the completion alone."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_run import adapter_run, make_run
from peft import LoraConfig, PromptTuningConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from ds_train.checkpoint.export import export_command
from ds_train.errors import InputError, ModelError
from ds_train.evaluate.generate import complete, encode_prompt, generate_command
from ds_train.evaluate.model import find_target

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def _quiet(_: str) -> None:
    pass


def _greedy(model: Any, ids: list[int], count: int) -> list[int]:
    """The plainest decoding there is."""
    ids = list(ids)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == 2:
            break
    return ids


def test_greedy_completion_is_the_argmax_at_each_step(
    tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_base))
    model = AutoModelForCausalLM.from_pretrained(str(tiny_base), dtype=torch.float32)
    ids = [1, *tokenizer("plus 3 4 =", add_special_tokens=False).input_ids]
    expected = tokenizer.decode(_greedy(model, ids, 12)[len(ids) :], skip_special_tokens=True)
    answer = generate_command(str(tiny_base), "plus 3 4 =", max_new_tokens=12)
    captured = capsys.readouterr()
    assert answer == expected and captured.out == expected + "\n"
    assert "model:" in captured.err


def test_run_adapter_and_merged_model_answer_alike(tmp_path: Path, tiny_base: Path) -> None:
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    paths, _ = adapter_run(tmp_path / "run", tiny_base, config)
    targets = [paths.root, export_command(paths.root, say=_quiet)]
    targets.append(export_command(paths.root, merge=True, say=_quiet))
    answers = [generate_command(str(one), "abc", max_new_tokens=16, say=_quiet) for one in targets]
    assert answers[0] == answers[1] == answers[2]
    base = generate_command(str(paths.root), "abc", base=True, max_new_tokens=16, say=_quiet)
    assert base != answers[0]


def test_virtual_tokens_generate_too(tmp_path: Path, tiny_base: Path) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    paths, adapted = adapter_run(tmp_path / "run", tiny_base, config)
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_base))
    ids = tokenizer("abc").input_ids
    expected = tokenizer.decode(_greedy(adapted, ids, 8)[len(ids) :], skip_special_tokens=True)
    answer = generate_command(str(paths.root), "abc", max_new_tokens=8, say=_quiet)
    assert answer == expected


def test_the_prompt_begins_once_and_does_not_end(tiny_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_base))
    ids = encode_prompt(find_target(tiny_base), tokenizer, "<s>Hi")
    assert ids == encode_prompt(find_target(tiny_base), tokenizer, "Hi")
    assert ids.count(1) == 1 and 2 not in ids


def test_chat_takes_the_recipe_s_template(tmp_path: Path, tiny_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_base))
    with pytest.raises(ModelError, match="has no chat template"):
        encode_prompt(find_target(tiny_base), tokenizer, "Hi", chat=True)
    paths = make_run(tmp_path / "run", tiny_base, "full", data={"chat_template": TEMPLATE})
    target = find_target(paths.root, base=True)
    ids = encode_prompt(target, tokenizer, "Hi", chat=True, system="Be brief.")
    assert tokenizer.decode(ids) == "<s>system: Be brief.\nuser: Hi\nassistant:"
    with pytest.raises(InputError, match="--system: only with --chat"):
        encode_prompt(target, tokenizer, "Hi", system="Be brief.")


def test_the_prompt_may_come_from_stdin(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("plus 3 4 ="))
    read = generate_command(str(tiny_base), "-", max_new_tokens=6, say=_quiet)
    assert read == generate_command(str(tiny_base), "plus 3 4 =", max_new_tokens=6, say=_quiet)


def test_a_seed_names_a_sample(tiny_base: Path) -> None:
    def sample(seed: int) -> str:
        return generate_command(
            str(tiny_base), "a", max_new_tokens=20, temperature=1.5, seed=seed, say=_quiet
        )

    assert sample(1) == sample(1) != sample(2)


def test_samplers_of_generation_config_do_not_leak(tiny_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_base))
    model: Any = AutoModelForCausalLM.from_pretrained(str(tiny_base), dtype=torch.float32)
    ids = tokenizer("abc").input_ids
    plain = complete(model, tokenizer, ids, max_new_tokens=12)
    model.generation_config = GenerationConfig(repetition_penalty=50.0, min_new_tokens=3)
    assert complete(model, tokenizer, ids, max_new_tokens=12) == plain


def test_limits(tiny_base: Path) -> None:
    said: list[str] = []
    generate_command(str(tiny_base), "x" * 250, max_new_tokens=50, say=said.append)
    assert said[-1] == "generate: at most 5 tokens, then the model's 256 positions are full"
    with pytest.raises(InputError, match="the prompt has 301 tokens, and the model reads at most"):
        generate_command(str(tiny_base), "x" * 300, say=_quiet)
    for settings, message in (
        ({"max_new_tokens": 0}, "must be at least 1"),
        ({"temperature": -1.0}, "must be 0"),
        ({"top_p": 0.0}, "must be over 0"),
    ):
        with pytest.raises(InputError, match=message):
            generate_command(str(tiny_base), "x", **settings)


def test_a_real_model_tells_a_story(stories260k: Path) -> None:
    story = generate_command(str(stories260k), "Once upon a time", max_new_tokens=40, say=_quiet)
    assert story.startswith(", there was a little")


def test_a_mistyped_run_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "recipe.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        find_target("runs/frist")
    assert str(caught.value) == (
        '"runs/frist": no such folder; name a run, adapter or model folder.'
    )
