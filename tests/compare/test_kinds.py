"""The task of `ds-train fewshot --demo`: kinds, tasks that are held out, the same bytes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from ds_train.compare.kinds import (
    NUM_KINDS,
    NUM_NEW,
    NUM_TASKS,
    KindsFiles,
    make_items,
    make_tongue,
    share_out,
    write_kinds,
)
from ds_train.compare.kinds_demo import (
    SHOTS,
    episodes_recipe,
    few_recipe,
    fewshot_demo,
    summary,
)
from ds_train.config.files import check_files
from ds_train.config.load import load_recipe
from ds_train.errors import ConfigError
from ds_train.plan.rules import check_rules

TONGUE = make_tongue(0)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> KindsFiles:
    return write_kinds(tmp_path_factory.mktemp("kinds") / "files")


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_noun_of_a_kind_has_the_same_answer_and_kinds_differ() -> None:
    for way in share_out(TONGUE, 0):
        items = [*make_items(TONGUE, way, new=True), *make_items(TONGUE, way, new=False)]
        assert len(items) == len(TONGUE.nouns) * len(TONGUE.adjectives) == 240
        answers: dict[int, set[str]] = {}
        for item in items:
            kind = TONGUE.nouns.index(item["text"].split()[1]) % NUM_KINDS
            answers.setdefault(kind, set()).add(item["label"])
        assert sorted(answers[kind].pop() for kind in range(NUM_KINDS)) == sorted(TONGUE.answers)


def test_held_out_tasks_are_others_and_their_items_too(files: KindsFiles) -> None:
    ways = share_out(TONGUE, 0)
    assert len(set(ways)) == NUM_TASKS + NUM_NEW == 18
    trained = {row["text"] for path in files.tasks for row in rows(path)}
    new = {row["text"] for path in files.new for row in rows(path)}
    assert trained.isdisjoint(new) and len(trained) + len(new) == 240
    assert 45 <= len(new) <= 75  # a quarter
    # every word of a new item stands in training items all the same
    assert {word for text in new for word in text.split()} <= {
        word for text in trained for word in text.split()
    }


def test_enough_of_each_answer_to_learn_from_and_to_be_tested_on(files: KindsFiles) -> None:
    few, test = rows(files.few), rows(files.few_test)
    assert {row["text"] for row in few}.isdisjoint(row["text"] for row in test)
    for part in (few, test):
        counts = Counter(row["label"] for row in part)
        # k examples, as many for dev, and some left over
        assert len(counts) == 4 and min(counts.values()) >= 4 * SHOTS


def test_a_token_for_each_word(files: KindsFiles) -> None:
    tokenizer = AutoTokenizer.from_pretrained(files.architecture)
    item = rows(files.tasks[0])[0]
    text = f"{item['text']} {item['label']} ;"
    assert tokenizer.tokenize(text) == text.split()
    assert tokenizer.unk_token_id not in tokenizer(text).input_ids


def test_the_same_seed_gives_the_same_items(files: KindsFiles, tmp_path: Path) -> None:
    again = write_kinds(tmp_path)
    assert again.few.read_bytes() == files.few.read_bytes()
    assert make_tongue(1) != TONGUE and share_out(TONGUE, 1) != share_out(TONGUE, 0)


def test_the_bundled_recipes_read_the_files(files: KindsFiles, tmp_path: Path) -> None:
    config = load_recipe(*episodes_recipe(tmp_path, files))
    assert check_files(config) == [] == check_rules(config, 1)
    assert len(config.data.train) == 18 and len(config.held_out_tasks) == 6
    (tmp_path / "base").mkdir()
    for path in files.architecture.iterdir():
        (tmp_path / "base" / path.name).write_bytes(path.read_bytes())
    recipe, overrides = few_recipe(tmp_path, files)
    config = load_recipe(recipe, [*overrides, "model.init=random"])
    assert check_files(config) == [] == check_rules(config, 1)


def test_other_settings_than_compare_are_refused(tmp_path: Path) -> None:
    for given in ("my.yaml", "train.max_steps=3"):
        with pytest.raises(ConfigError) as refusal:
            fewshot_demo(tmp_path, [given, "compare.seeds=[0]"])
        assert str(refusal.value) == (
            f'--demo brings its own recipes, of which only compare.* can be set; remove "{given}".'
        )
    assert not (tmp_path / "files").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="can't be written to"):
        fewshot_demo(tmp_path / "file", [None])


def arm(name: str, **values: list[float]) -> dict[str, Any]:
    return {
        "arm": name,
        "metrics": [
            {
                "metric": metric.replace("_at_", ".").replace("shots", "shots."),
                "values": {str(seed): value for seed, value in enumerate(numbers)},
            }
            for metric, numbers in values.items()
        ],
    }


def test_the_summary_names_both_gains(tmp_path: Path) -> None:
    for name in ("episodes", "few"):
        (tmp_path / name).mkdir()
    arms = [
        arm("multitask", shots0_at_exact_match=[0.2, 0.3], shots8_at_exact_match=[0.25, 0.25]),
        arm("episodes", shots0_at_exact_match=[0.25, 0.25], shots8_at_exact_match=[0.9, 1.0]),
    ]
    (tmp_path / "episodes" / "compare.json").write_text(json.dumps({"arms": arms}))
    rungs = [arm("trained", rank_accuracy=[0.98]), arm("random_weights", rank_accuracy=[0.5])]
    few = {"rungs": rungs, "before": {"rank_accuracy": 0.25}}
    (tmp_path / "few" / "fewshot.json").write_text(json.dumps(few))
    lines = [line.split() for line in summary(tmp_path).splitlines()]
    assert lines[2][-3:] == ["25.0%", "25.0%", "25.0%"]  # mean, seed by seed
    assert lines[4][-3:] == ["95.0%", "90.0%", "100.0%"]
    assert [line[-1] for line in lines[6:]] == ["25.0%", "50.0%", "98.0%"]


@pytest.mark.distributed
def test_a_reduced_demo_from_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One seed, a twentieth of the tokens: what episodes teach first is which words may come."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    said: list[str] = []
    code = fewshot_demo(
        tmp_path,
        ["compare.seeds=[0]"],
        episodes=["train.max_tokens=35000"],
        few=["train.max_steps=5", "train.warmup_steps=1"],
        say=lambda text: said.append(str(text)),
    )
    assert code == 0, "\n".join(said)
    numbers = json.loads((tmp_path / "episodes" / "compare.json").read_text())
    loss = {
        one["arm"]: metric["values"]["0"]
        for one in numbers["arms"]
        for metric in one["metrics"]
        if metric["metric"] == "shots.8.loss"
    }
    # far from the whole run's gain (benchmarks/results/fewshot_demo.md), and well beyond chance
    assert loss["episodes"] < 0.75 * loss["multitask"]
    few = json.loads((tmp_path / "few" / "fewshot.json").read_text())
    assert {one["arm"] for one in few["rungs"]} == {"trained", "random_weights"}
    assert 0 <= few["before"]["rank_accuracy"] <= 1
    text = "\n".join(said)
    assert "not measured" not in text and f"everything lies in {tmp_path}" in text
