"""Bits per byte: windows like lm_eval's, every token once, numbers that add up."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_train.cli import main
from ds_train.engine.ranks import Ranks
from ds_train.errors import DataError, ModelError
from ds_train.evaluate.model import load_for_inference
from ds_train.evaluate.requests import Request
from ds_train.evaluate.scorer import RequestScorer
from ds_train.evaluate.text import TextScore, read_texts, rolling_requests, score_texts
from ds_train.model.head import LanguageModel
from ds_train.model.tiny import byte_tokenizer, tiny_model


def test_windows_worked_by_hand() -> None:
    found = rolling_requests(list(range(10)), prefix=-1, max_length=4)
    assert found == [
        Request([-1], [0, 1, 2, 3]),
        Request([3], [4, 5, 6, 7]),
        Request([5, 6, 7], [8, 9]),
    ]


@settings(deadline=None)  # the first call imports lm_eval
@given(st.integers(1, 40), st.integers(1, 12))
def test_windows_are_those_of_lm_eval(length: int, max_length: int) -> None:
    utils = pytest.importorskip("lm_eval.utils")
    ids = list(range(length))
    theirs = utils.get_rolling_token_windows(ids, -1, max_seq_len=max_length, context_len=1)
    pairs = [utils.make_disjoint_window(pair) for pair in theirs]
    found = rolling_requests(ids, -1, max_length)
    assert [(list(one.context), list(one.continuation)) for one in found] == pairs
    assert [token for one in found for token in one.continuation] == ids


@pytest.fixture(scope="module")
def scorer() -> RequestScorer:
    model = LanguageModel(tiny_model("llama")).eval()
    return RequestScorer(model, Ranks(0, 0, 1), max_length=32)


def test_a_short_text_is_one_forward_pass(scorer: RequestScorer) -> None:
    tokenizer = byte_tokenizer()
    text = "größer  than\n"
    (found,) = score_texts(scorer, tokenizer, [text])
    ids = tokenizer.encode(text, add_special_tokens=False)
    with torch.no_grad():
        logits = scorer.model(torch.tensor([[tokenizer.bos_token_id, *ids[:-1]]])).logits[0]
    nats = torch.nn.functional.cross_entropy(logits, torch.tensor(ids), reduction="sum").item()
    assert found.nats == pytest.approx(nats, rel=1e-5)
    assert (found.num_tokens, found.num_bytes, found.num_words) == (15, 15, 3)
    numbers = found.numbers()
    assert numbers["bits_per_byte"] == pytest.approx(nats / 15 / math.log(2), rel=1e-5)
    assert numbers["perplexity"] == pytest.approx(math.exp(nats / 15), rel=1e-5)
    assert numbers["word_perplexity"] == pytest.approx(math.exp(nats / 3), rel=1e-4)


def test_texts_do_not_see_each_other(scorer: RequestScorer) -> None:
    texts = ["a" * 100, "b", "the bees " * 20]
    together = score_texts(scorer, byte_tokenizer(), texts)
    for text, one in zip(texts, together, strict=True):
        (alone,) = score_texts(scorer, byte_tokenizer(), [text])
        assert alone.nats == pytest.approx(one.nats, rel=1e-5)
    assert (together[0] + together[1]).num_bytes == 101


class Same:
    """Scores every token the same, and counts what it is asked."""

    max_length = 8

    def score(self, requests: Sequence[Request], progress: str | None = None) -> Any:
        class Found:
            logprob = np.array([-math.log(2) * len(one.continuation) for one in requests])

        return Found


def test_one_bit_a_token() -> None:
    (found,) = score_texts(Same(), byte_tokenizer(), ["x" * 100])
    assert found.bits_per_token == found.bits_per_byte == pytest.approx(1.0)


def test_perplexity_beyond_what_can_be_written() -> None:
    assert TextScore(1e6, 10, 10, 10).numbers()["perplexity"] == math.inf


def test_lm_eval_s_bits_per_byte_of_a_task(stories260k: Path) -> None:
    """The same windows and sums as HFLM's own, whose tokenizer puts BOS before a text (and has it
    predicted too, which we do not)."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    instance = pytest.importorskip("lm_eval.api.instance")
    model, tokenizer = load_for_inference(stories260k, dtype="fp32", say=lambda text: None)
    texts = ["Once upon a time there was a cat who liked to read. " * 60, "A dog."]
    theirs = huggingface.HFLM(pretrained=model, tokenizer=tokenizer, add_bos_token=False)
    requests = [
        instance.Instance("loglikelihood_rolling", {}, (text,), 0, ("t", 0, 1)) for text in texts
    ]
    expected = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    ours = RequestScorer(LanguageModel(model).eval(), Ranks(0, 0, 1), max_length=512)
    found = score_texts(ours, tokenizer, texts)
    np.testing.assert_allclose([-one.nats for one in found], expected, rtol=1e-5)


def test_faults() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(ModelError, match="neither a beginning- nor an end-of-sequence token"):
        score_texts(Same(), tokenizer, ["x"])
    with pytest.raises(DataError, match=r"text 1: has no tokens"):
        score_texts(Same(), byte_tokenizer(), ["x", ""])


def test_files_that_can_t_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"gr\xf6n")
    (tmp_path / "empty.txt").touch()
    paths = [tmp_path / name for name in ("none.txt", "latin.txt", "empty.txt", "")]
    with pytest.raises(DataError) as caught:
        read_texts(paths)
    assert caught.value.faults == [
        f'--text "{tmp_path}/none.txt": no such file.',
        f'--text "{tmp_path}/latin.txt": not UTF-8 at byte 2; convert it first.',
        f'--text "{tmp_path}/empty.txt": is empty; there is nothing to predict.',
        f'--text "{tmp_path}": is a folder; name its files.',
    ]


def test_line_ends_are_text(tmp_path: Path) -> None:
    (tmp_path / "dos.txt").write_bytes(b"a\r\nb\r\n")
    assert read_texts([tmp_path / "dos.txt"]) == ["a\r\nb\r\n"]


def test_the_command(tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in (("one", "bees and ships\n" * 40), ("two", "maps")):
        (tmp_path / name).write_text(text)
    names = [str(tmp_path / "one"), str(tmp_path / "two")]
    output = tmp_path / "numbers.json"
    arguments = ["evaluate", str(tiny_base), "--text", *names, "--output", str(output)]
    assert main(arguments) == 0
    found = json.loads(output.read_text())
    assert found["max_length"] == 256
    assert list(found["texts"]) == names
    assert found["all"]["num_bytes"] == 604
    table = capsys.readouterr().out.splitlines()
    assert "bits per byte" in table[1]
    assert [line.split()[0] for line in table[2:]] == [*names, "all"]

    assert main([*arguments[:-2], "--max-length", "16"]) == 0
    assert "windows of 16 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-length", "999"], "reads at most 256 tokens."),
        (["--shots", "2"], "--text: has no use for --shots; leave it out."),
        (["--demonstrations", "bm25"], "--text: has no use for --demonstrations; leave it out."),
        (["--max-rows", "3"], "--text: has no use for --max-rows; leave it out."),
        (["--tasks", "a"], "--tasks and --text are two evaluations; run one after the other."),
    ],
)
def test_options_that_do_not_go_with_it(
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    (tmp_path / "one").write_text("maps")
    assert main(["evaluate", str(tiny_base), "--text", str(tmp_path / "one"), *options]) == 2
    assert message in capsys.readouterr().err
