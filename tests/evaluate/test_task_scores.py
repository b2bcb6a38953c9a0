"""Normalised and calibrated accuracies of lm_eval's tasks, against what the requests say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lm_eval")

from film_task import FILMS, load_task, write_task

from ds_train.engine.ranks import Ranks
from ds_train.errors import InputError
from ds_train.evaluate.scorer import RequestScorer
from ds_train.evaluate.task_command import over_seeds
from ds_train.evaluate.task_model import TaskModel
from ds_train.evaluate.task_options import TaskOptions
from ds_train.evaluate.tasks import TaskResult, TaskSettings, run_tasks
from ds_train.model.head import LanguageModel
from ds_train.model.tiny import byte_tokenizer, tiny_model

CHOICES = ["bad", "very good"]


@pytest.fixture(scope="module")
def model() -> TaskModel:
    scorer = RequestScorer(
        LanguageModel(tiny_model("llama")), Ranks(0, 0, 1), max_length=256, batch_tokens=2048
    )
    return TaskModel(scorer, byte_tokenizer())


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("tasks") / "films")


def evaluate(
    folder: Path, model: TaskModel, shots: int = 2, say: Any = lambda text: None, **options: Any
) -> TaskResult:
    name = options.pop("name", "films")
    settings = TaskSettings(
        tasks=(name,), shots=(shots,), options=TaskOptions(**options), log_samples=True
    )
    tasks = {"tasks": {name: load_task(folder, name)}, "groups": {}, "group_map": {}}
    (result,) = run_tasks(tasks, settings, model, say)
    return result


def sums(model: TaskModel, context: str, choices: list[str]) -> np.ndarray:
    requests = model.encode_pairs([(context, " " + choice) for choice in choices])
    return model.scorer.score(requests).logprob


def test_all_accuracies_by_hand(films: Path, model: TaskModel) -> None:
    names = ("none", "tokens", "chars", "bytes", "pmi")
    found = evaluate(
        films, model, normalise=names, calibration=("contextual", "batch"), demonstrations="bm25"
    )
    right: dict[str, list[bool]] = {}
    by_batch, golds = [], []
    assert found.samples is not None
    for sample in found.samples:
        context, gold = sample["arguments"][0][0], sample["doc"]["label"]
        own = sums(model, context, CHOICES)
        before = context[: context.rindex(sample["doc"]["text"])]
        free = [sums(model, before + text + "\nIt was", CHOICES) for text in ("N/A", "", "[MASK]")]
        alone = sums(model, "", CHOICES)
        lengths = {"": np.ones(2), "_chars": np.array([3, 9]), "_bytes": np.array([3, 9])}
        lengths["_tokens"] = np.array([4, 10])  # bytes, and the space before
        for name, length in lengths.items():
            bias = np.mean([np.exp(s / length) / np.exp(s / length).sum() for s in free], axis=0)
            p = np.exp(own / length) / np.exp(own / length).sum()
            right.setdefault(f"acc{name}", []).append(np.argmax(p) == gold)
            right.setdefault(f"acc{name}_contextual", []).append(np.argmax(p / bias) == gold)
        right.setdefault("acc_pmi", []).append(np.argmax(own - alone) == gold)
        by_batch.append(own)
        golds.append(gold)
    numbers = found.numbers()
    for name, flags in right.items():
        assert numbers[f"{name},none"] == pytest.approx(np.mean(flags)), name
    p = np.exp(by_batch - np.max(by_batch, axis=1, keepdims=True))
    bias = (p / p.sum(axis=1, keepdims=True)).mean(axis=0)
    best = np.argmax(np.array(by_batch) - np.log(bias), axis=1)
    assert numbers["acc_batch,none"] == pytest.approx(np.mean(best == golds))
    assert found.higher_is_better["acc_tokens_contextual"] is True


def test_a_biased_model_is_set_right(films: Path, model: TaskModel) -> None:
    # a random model has a bias towards one of the answers, and no idea of films: uncalibrated it
    # says one thing only, calibrated it does not
    found = evaluate(films, model, 0, calibration=("batch",))
    assert found.numbers()["acc,none"] == 0.5
    assert found.error_of("acc,none") == pytest.approx(np.sqrt(0.25 / 11))


def test_seeds_are_repeated_where_something_is_drawn(films: Path, model: TaskModel) -> None:
    tasks = {"tasks": {"films": load_task(films)}, "groups": {}, "group_map": {}}
    common: dict[str, Any] = {"tasks": ("films",), "shots": (0, 2), "seeds": (1, 2, 3)}
    results = run_tasks(tasks, TaskSettings(**common), model, lambda text: None)
    assert [(one.shots, one.seed) for one in results] == [(0, 1), (2, 1), (2, 2), (2, 3)]
    none, some = over_seeds(results)
    values = [one.numbers()["acc,none"] for one in results[1:]]
    assert some["seeds"] == [1, 2, 3]
    assert some["metrics"]["acc,none"]["mean"] == pytest.approx(np.mean(values))
    assert some["metrics"]["acc,none"]["sd"] == pytest.approx(np.std(values, ddof=1))
    assert none["metrics"]["acc,none"]["sd"] is None

    tasks["tasks"]["films"] = load_task(films)
    settings = TaskSettings(**common, options=TaskOptions(demonstrations="bm25"))
    results = run_tasks(tasks, settings, model, lambda text: None)
    assert [(one.shots, one.seed) for one in results] == [(0, 1), (2, 1)]


def test_the_task_s_own_results_do_not_change(films: Path, model: TaskModel) -> None:
    plain = evaluate(films, model)
    more = evaluate(films, model, normalise=("tokens",), calibration=("contextual", "pmi"))
    assert plain.results["acc,none"] == more.results["acc,none"]
    assert plain.results["acc_stderr,none"] == more.results["acc_stderr,none"]
    assert set(plain.numbers()) < set(more.numbers())


def test_normalised_by_characters_and_bytes_as_lm_eval_does(
    tmp_path: Path, model: TaskModel
) -> None:
    own = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")
    folder = write_task(
        tmp_path / "long",
        doc_to_choice=["schön schön", "so"],
        metric_list=[{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in own],
    )
    found = evaluate(folder, model, normalise=("chars", "bytes", "pmi")).numbers()
    assert found["acc_chars,none"] == found["acc_norm,none"]
    assert found["acc_bytes,none"] == found["acc_bytes,none"]
    assert found["acc_pmi,none"] == found["acc_mutual_info,none"]


def test_batch_calibration_says_what_it_uses(films: Path, model: TaskModel) -> None:
    said: list[str] = []
    evaluate(films, model, say=said.append, calibration=("batch",))
    assert [one for one in said if "from the test inputs themselves" in one] == [
        "task films: batch calibration estimates the bias from the test inputs themselves (not "
        "from their answers); compare it with methods that may do so too"
    ]


def test_a_generation_task_is_left_as_it_is_and_it_is_said(
    tmp_path: Path, model: TaskModel
) -> None:
    from ds_train.evaluate.task_options import equip

    folder = write_task(
        tmp_path / "spoken",
        output_type="generate_until",
        doc_to_choice=None,
        doc_to_target="{{['bad', 'very good'][label]}}",
        generation_kwargs={"until": ["\n"]},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    said: list[str] = []
    options = TaskOptions(normalise=("tokens",))
    task = load_task(folder)
    found = equip("films", task, options, model, embed=len, limit=None, say=said.append)
    assert found.scores is None
    assert said == [
        "task films: normalise and calibration are left out, as they are for multiple_choice "
        "tasks and this is a generate_until task"
    ]


def several_inputs(folder: Path) -> Path:
    """Winogrande's form: candidates are contexts before one continuation."""
    return write_task(
        folder,
        doc_to_text="label",
        doc_to_choice="{{['The bad film about', 'The good film about']}}",
        doc_to_target="{{text}}",
    )


def test_messages(films: Path, model: TaskModel, tmp_path: Path) -> None:
    folder = several_inputs(tmp_path / "several")
    with pytest.raises(InputError, match=r"calibration = contextual: its candidates are contexts"):
        evaluate(folder, model, 0, calibration=("contextual",))
    numbers = evaluate(folder, model, 1, normalise=("tokens",)).numbers()
    assert numbers["acc_tokens,none"] == numbers["acc,none"]

    folder = write_task(tmp_path / "empty", doc_to_text="A film.")
    with pytest.raises(
        InputError, match=r"task films: calibration = contextual: its question .doc"
    ):
        evaluate(folder, model, 0, calibration=("contextual",))

    folder = write_task(tmp_path / "ragged", doc_to_choice="{{['bad', 'good', text][:2 + label]}}")
    with pytest.raises(InputError, match=r"task films: calibration = batch: .* choices differ"):
        evaluate(folder, model, 0, calibration=("batch",))

    folder = write_task(tmp_path / "stray")
    rows = [FILMS[12], {**FILMS[13], "label": 2}]
    (folder / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"right answer \(2\) is none of its 2 choices"):
        evaluate(folder, model, 0, normalise=("tokens",))
