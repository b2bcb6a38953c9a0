"""The invented language: one way to cut a word, one right answer, a test apart from training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from ds_train.quickstart.files import make_tokenizer, write_files
from ds_train.quickstart.language import (
    MARKS,
    TASKS,
    Event,
    Phrase,
    answer_to,
    make_items,
    make_lexicon,
    make_stories,
)

LEXICON = make_lexicon(0)


def test_sentence_of_the_docstring() -> None:
    subject = Phrase("nimek", noun_class=0, plural=True, adjective="tavor")
    thing = Phrase("sorat", noun_class=1, plural=False, adjective=None)
    event = Event(subject, thing, "pavol", "past")
    assert event.text() == "nimeki tavoru soratta pavolelm ."


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("past", " nimeki soratta pavolelm ."),
        ("future", " nimeki soratta pavolosm ."),
        ("negate", " nimeki soratta ne pavolam ."),
        ("who", " nimeki ."),
    ],
)
def test_one_right_answer(task: str, answer: str) -> None:
    event = Event(
        Phrase("nimek", 0, True, None), Phrase("sorat", 1, False, None), "pavol", "present"
    )
    item = answer_to(task, event)
    assert item is not None
    assert item.prompt == f"[ {task} ] nimeki soratta pavolam . ="
    assert item.completion == answer


def test_no_item_where_nothing_would_change() -> None:
    event = Event(Phrase("nimek", 0, True, None), Phrase("sorat", 1, False, None), "pavol", "past")
    assert answer_to("past", event) is None
    assert answer_to("plural", event) is None


def test_a_word_is_cut_into_stem_and_endings() -> None:
    tokenizer = make_tokenizer(LEXICON)
    noun, verb = LEXICON.nouns[0], LEXICON.verbs[0]
    tokens = tokenizer.encode(f"{noun}ita ne {verb}elm .", add_special_tokens=False).tokens
    assert tokens == [noun, "##i", "##ta", "ne", verb, "##el", "##m", "."]


def test_the_tokenizer_knows_every_word_and_gives_it_back() -> None:
    tokenizer = make_tokenizer(LEXICON)
    texts = list(make_stories(LEXICON, 200, 0))
    texts += [item.prompt + item.completion for item in make_items(LEXICON, 200, 0, held_out=True)]
    for text in texts:
        encoding = tokenizer.encode(text)
        assert "<unk>" not in encoding.tokens
        assert tokenizer.decode(encoding.ids) == text


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = write_files(tmp_path / "a", 3), write_files(tmp_path / "b", 3)
    for name in ("stories", "train", "test"):
        assert getattr(first, name).read_bytes() == getattr(second, name).read_bytes()


def test_stories_do_not_know_the_task() -> None:
    words = set(" ".join(make_stories(LEXICON, 2000, 0)).split())
    assert words.isdisjoint({*TASKS, *MARKS})


def test_the_folder_is_one_that_transformers_reads(tmp_path: Path) -> None:
    files = write_files(tmp_path, 0)
    tokenizer = AutoTokenizer.from_pretrained(files.architecture)
    config = json.loads((files.architecture / "config.json").read_text())
    assert len(tokenizer) == config["vocab_size"]
    assert tokenizer.eos_token_id == config["eos_token_id"]
    assert tokenizer("ne").input_ids[0] == tokenizer.bos_token_id
