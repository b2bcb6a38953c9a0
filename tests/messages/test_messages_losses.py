"""Messages about losses over candidates and rank classification, as the commands say them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ds_train.cli import main

RECIPE = """\
output_dir: run
model: {name_or_path: MODEL}
data:
  train:
  - {path: train.jsonl, format: classification}
  max_length: 64
  packing: false
  cache_dir: cache
  num_workers: 1
fewshot: {losses: {}}
train: {max_steps: 5}
cluster: {processes_per_node: 1}
"""
FILMS = [{"text": f"film {i}", "label": "good" if i % 2 else "bad"} for i in range(12)]
HALF = "data.validation.fraction=0.5"
RANKED = "evaluate.rank_classification=true"
PLAIN = "data.train=[{path: plain.jsonl, format: prompt_completion}]"

CASES: list[tuple[str, list[str], str]] = [
    (
        "validate",
        ["data.packing=true"],
        "data.packing = true with fewshot.losses: each candidate answer is scored in a line of its "
        "own, and a row is an example with all of its candidates; set data.packing: false.",
    ),
    (
        "validate",
        ["curriculum={metric: length, pacing: {start: 0.2, end_at: 1.0}}"],
        "curriculum with fewshot.losses: it draws samples, and a step of these losses is made of "
        "examples with their candidates; remove one of them (a source's weight says how often its "
        "examples come).",
    ),
    (
        "validate",
        ["data.mixture={stages: [{weights: {train.jsonl: 1.0}}]}"],
        "data.mixture with fewshot.losses: it draws samples, and a step of these losses is made of "
        "examples with their candidates; remove one of them (a source's weight says how often its "
        "examples come).",
    ),
    (
        "validate",
        ["fewshot.episodes={}"],
        "fewshot.losses with fewshot.episodes: the losses score the candidate answers of one "
        "example, and an episode is a row of several; remove one of them.",
    ),
    (
        "validate",
        ["fewshot.losses={unlikelihood: 0, length_normalised: 0, max_negatives: 2}"],
        "fewshot.losses.max_negatives = 2: unlikelihood and length_normalised are 0, so that no "
        "wrong answer is scored; remove it, or raise one of them.",
    ),
    (
        "validate",
        ["fewshot.losses={language_modelling: 0, lm_mean: token}"],
        "fewshot.losses.lm_mean = token: language_modelling is 0, so that nothing is averaged; "
        "remove it, or raise language_modelling.",
    ),
    (
        "validate",
        ["fewshot.losses={language_modelling: 0, unlikelihood: 0, length_normalised: 0}"],
        "fewshot.losses: language_modelling, unlikelihood and length_normalised are 0, so that "
        "nothing would be learned; raise one (given: language_modelling, unlikelihood, "
        "length_normalised) (on the command line).",
    ),
    (
        "validate",
        ["fewshot.losses.unlikelihood=-1"],
        "fewshot.losses.unlikelihood = -1: must be at least 0 (on the command line).",
    ),
    (
        "validate",
        ["fewshot.losses.unlikelyhood=1"],
        "fewshot.losses.unlikelyhood: no such setting. Did you mean fewshot.losses.unlikelihood? "
        "(on the command line)",
    ),
    (
        "validate",
        ["fewshot.losses.max_negatives=0"],
        "fewshot.losses.max_negatives = 0: must be at least 1 (on the command line).",
    ),
    (
        "validate",
        ["fewshot.losses.lm_mean=batch"],
        'fewshot.losses.lm_mean = "batch": must be one of example, token (on the command line).',
    ),
    (
        "validate",
        ["data.over_length=split"],
        "data.over_length = split with fewshot.losses: an answer that is cut off can't be compared "
        "with whole ones; take drop or error.",
    ),
    (
        "validate",
        ["fewshot=null", HALF, RANKED, "data.loss_on=all"],
        "data.loss_on = all with evaluate.rank_classification: the question's tokens would count "
        "as part of every answer; set completion.",
    ),
    (
        "validate",
        ["data.train.0.loss_on=all"],
        "data.train[0].loss_on = all with fewshot.losses: the question's tokens would count as "
        "part of every answer; set completion.",
    ),
    (
        "validate",
        [RANKED],
        "evaluate.rank_classification: there is no validation data; set data.validation: "
        "{fraction: 0.05} or give data.validation.sources.",
    ),
    (
        "validate",
        ["fewshot={episodes: {k: 2}}", RANKED, HALF],
        "evaluate.rank_classification with fewshot.episodes: answers would be ranked without the "
        "demonstrations that the run trains with; remove it (fewshot.episodes.shots says with how "
        "many the loss is measured).",
    ),
    (
        "validate",
        ["compare={arms: {a: {}}, metrics: [loss, sources.train.jsonl.rank_accuracy_chars]}", HALF],
        'compare.metrics[1] = "sources.train.jsonl.rank_accuracy_chars": is measured where wrong '
        "answers are scored too; set evaluate.rank_classification: true.",
    ),
    (
        "data",
        ["--step", "0", PLAIN],
        "fewshot.losses: compares the right answer with wrong ones, and no source of data.train "
        "has any; use format: classification or multiple_choice, or remove it.",
    ),
    (
        "data",
        ["--step", "0", "data.train=[{path: one.jsonl, format: classification}]"],
        "data.train[0] (one.jsonl): has one class only (bad), so there is no wrong answer to "
        "compare the right one with; name the others in labels, or add rows of them.",
    ),
    (
        "data",
        ["fewshot=null", PLAIN, RANKED, HALF],
        "evaluate.rank_classification: no example of the held-out data has answers to choose from; "
        "use format: classification (with two labels or more) or multiple_choice there, or leave "
        "it out.",
    ),
]


@pytest.mark.parametrize(("command", "arguments", "message"), CASES)
def test_messages(
    command: str,
    arguments: list[str],
    message: str,
    stories260k: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = [{"prompt": one["text"], "completion": one["label"]} for one in FILMS]
    one_class = [{**one, "label": "bad"} for one in FILMS]
    for name, rows in (("train", FILMS), ("plain", plain), ("one", one_class)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("my.yaml").write_text(RECIPE.replace("MODEL", str(stories260k)))
    assert main([command, "my.yaml", *arguments]) == 2
    assert capsys.readouterr().err.splitlines() == [f"error: {message}"]
    assert not Path("run").exists()
