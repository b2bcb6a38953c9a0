"""Difficulties on disk: made once, found again, made anew when anything they depend on changes."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scored_recipe import ROWS, book_of, prepared, scored_recipe, silent

from ds_train.config.run import RunConfig
from ds_train.curriculum import scores
from ds_train.curriculum.metrics.combine import cdf_ranks
from ds_train.curriculum.model_facts import metric_model_facts, start_model_facts
from ds_train.curriculum.scores import DifficultyScores, open_scores
from ds_train.errors import ConfigError, DataError
from ds_train.model.tiny import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


def ask(config: RunConfig, said: list[str] | None = None) -> DifficultyScores:
    return open_scores(config, prepared(config), [].append if said is None else said.append)


def change(config: RunConfig, section: str, **values: Any) -> RunConfig:
    """The recipe with other settings in one section."""
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def test_values_are_those_of_the_training_samples(model: Path, tmp_path: Path) -> None:
    config = scored_recipe(model, tmp_path, "length", validation={"fraction": 0.3})
    data = prepared(config)
    found = open_scores(config, data, silent)
    assert data.train.num_samples < 60 and found.metric == "length"
    assert found.values.dtype == np.float32 and not found.values.flags.writeable
    assert found.values.tolist() == data.train.lengths.tolist()


def test_made_once_and_found_again(model: Path, tmp_path: Path) -> None:
    config = scored_recipe(model, tmp_path, "rarity")
    said: list[str] = []
    first = ask(config, said)
    assert said == ["difficulty: rarity of 60 samples in 0.0 s"]
    again = ask(config, said)
    assert len(said) == 1, "nothing is computed, so nothing is said"
    assert again.values.tolist() == first.values.tolist()
    assert again.fingerprint == first.fingerprint
    assert isinstance(again.values, np.memmap)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("difficulty/*.f32")}


def test_no_temporary_file_is_left(model: Path, tmp_path: Path) -> None:
    ask(scored_recipe(model, tmp_path, "length"))
    (folder,) = tmp_path.rglob("difficulty")
    assert {path.suffix for path in folder.iterdir()} == {".f32", ".json", ".lock"}


def test_other_data_has_other_difficulties(model: Path, tmp_path: Path) -> None:
    first = ask(scored_recipe(model, tmp_path, "length"))
    second = ask(scored_recipe(model, tmp_path, "length", ROWS[:50]))
    assert (len(first.values), len(second.values)) == (60, 50)
    assert first.fingerprint != second.fingerprint
    # the same tokens, divided otherwise: what trains is another set
    part = ask(scored_recipe(model, tmp_path, "length", validation={"fraction": 0.2}))
    assert len(part.values) < 60 and len(files(tmp_path)) == 3


def test_metrics_do_not_share_files(model: Path, tmp_path: Path) -> None:
    column = {"column": "level", "levels": ["a", "b"]}
    mine = [{**ROWS[i], "level": "ab"[i % 2], "steps": i % 2} for i in range(6)]
    found = [
        ask(scored_recipe(model, tmp_path, metric, mine))
        for metric in ("length", "target_length", column, {"column": "steps"})
    ]
    assert len({one.fingerprint for one in found}) == len(files(tmp_path)) == 4
    assert found[2].values.tolist() == found[3].values.tolist()
    other_order = ask(scored_recipe(model, tmp_path, {**column, "levels": ["b", "a"]}, mine))
    assert other_order.values.tolist() == [1, 0] * 3
    assert other_order.metric == "{column: level, levels: [b, a]}"


def test_a_function_that_was_changed_is_asked_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = scored_recipe(model, tmp_path, {"python": "own_metric_s:f"})
    file = Path("own_metric_s.py")
    file.write_text("def f(row):\n    return row['steps']\n")
    first = ask(config)
    file.write_text("def f(row):\n    return row['steps']  # a remark\n")
    said: list[str] = []
    second = ask(config, said)
    assert len(said) == 1, "another file is another function"
    assert second.fingerprint == first.fingerprint, "but equal values continue a run"


def test_a_broken_file_is_made_anew(model: Path, tmp_path: Path) -> None:
    config = scored_recipe(model, tmp_path, "length")
    first = ask(config)
    expected = first.values.tolist()
    (path,) = tmp_path.rglob("*.f32")
    for damage in (b"", b"\0" * 240, path.read_bytes()[:-4]):
        path.write_bytes(damage)
        said: list[str] = []
        assert ask(config, said).values.tolist() == expected
        assert any("made anew" in text for text in said)
    path.with_suffix(".json").write_text("{")
    assert ask(config).values.tolist() == expected
    path.with_suffix(".json").unlink()  # as after a crash between the two files
    assert ask(config).values.tolist() == expected


def test_several_metrics_are_the_mean_of_their_ranks(model: Path, tmp_path: Path) -> None:
    names = ["length", "rarity_mean", {"column": "steps"}]
    parts = [ask(scored_recipe(model, tmp_path, name)) for name in names]
    found = ask(scored_recipe(model, tmp_path, names))
    expected = np.mean([cdf_ranks(part.values) for part in parts], axis=0)
    assert found.values == pytest.approx(expected, rel=1e-6)
    assert found.metric == "[length, rarity_mean, {column: steps}]"
    assert len(files(tmp_path)) == 4
    said: list[str] = []
    assert ask(scored_recipe(model, tmp_path, names), said).fingerprint == found.fingerprint
    assert said == []


def test_the_same_metric_twice(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names rarity twice; remove one"):
        ask(scored_recipe(model, tmp_path, ["rarity", "length", "rarity"]))


def test_what_is_not_finite_is_refused_with_its_row(model: Path, tmp_path: Path) -> None:
    mine = [*ROWS, {"prompt": "?", "completion": "!!", "steps": 1e39}]
    with pytest.raises(DataError) as caught:
        ask(scored_recipe(model, tmp_path, {"column": "steps"}, mine))
    assert str(caught.value) == (
        "curriculum.metric = {column: steps}: train.jsonl, row 61 has the difficulty 1e+39; only "
        "finite numbers up to 3.4e38 can be ordered."
    )
    with pytest.raises(DataError) as caught:
        ask(scored_recipe(model, tmp_path, "readability", mine))
    assert str(caught.value) == (
        "curriculum.metric = readability: train.jsonl, row 61 has no word, so that its readability "
        "is not defined; remove it, or choose another metric."
    )
    assert files(tmp_path) == set(), "nothing is stored"


def test_no_curriculum(model: Path, tmp_path: Path) -> None:
    config = scored_recipe(model, tmp_path, "length").model_copy(update={"curriculum": None})
    with pytest.raises(ConfigError, match="curriculum is missing, so nothing says what is hard"):
        ask(config)


@pytest.mark.parametrize("metric", ["perplexity", "ifd", "loss"])
def test_what_needs_a_model_is_not_made_by_the_way(
    metric: str, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="run `ds-train score` with the same recipe first"):
        ask(scored_recipe(model, tmp_path, metric))


def test_stored_values_of_a_model_are_found(model: Path, tmp_path: Path) -> None:
    book = book_of(scored_recipe(model, tmp_path, "perplexity"))
    values = np.arange(60) / 7
    book.keep(book.specs[0], values, 1.0, silent)
    found = ask(book.config)
    assert found.values.tolist() == values.astype(np.float32).tolist()


def test_nan_of_a_model_is_refused(model: Path, tmp_path: Path) -> None:
    book = book_of(scored_recipe(model, tmp_path, "perplexity"))
    values = np.zeros(60)
    values[[7, 9]] = np.nan
    with pytest.raises(DataError, match=r"row 8 has the difficulty nan \(1 more samples are like"):
        book.keep(book.specs[0], values, 1.0, silent)


def test_models_that_differ_have_other_names(tmp_path: Path) -> None:
    one, two = save_tiny(tmp_path / "one"), save_tiny(tmp_path / "two", seed=1)
    assert metric_model_facts(str(one)) != metric_model_facts(str(two))
    copy = save_tiny(tmp_path / "copy")
    assert metric_model_facts(str(one)) == metric_model_facts(str(copy)), "the place is no matter"
    assert metric_model_facts("some/hub-name") == ["some/hub-name", None]
    assert metric_model_facts("./not/there/at/all") == ["./not/there/at/all", None]
    config = scored_recipe(one, tmp_path, "loss")
    facts = start_model_facts(config)
    assert start_model_facts(change(config, "model", dtype="bf16")) != facts
    random = change(config, "model", init="random")
    assert start_model_facts(random) != facts
    assert start_model_facts(change(random, "train", seed=1)) != start_model_facts(random)
    assert start_model_facts(change(config, "train", seed=1)) == facts


def _open_and_count(config: RunConfig, start: Any, queue: Any) -> None:
    start.wait(60)
    said: list[str] = []
    found = open_scores(config, prepared(config), said.append)
    queue.put((len(said), found.fingerprint))


def test_of_several_processes_one_makes_it(model: Path, tmp_path: Path) -> None:
    config = scored_recipe(model, tmp_path, "rarity")
    prepared(config)
    context = multiprocessing.get_context("spawn")
    queue, start = context.Queue(), context.Barrier(2)
    arguments = (config, start, queue)
    started = [context.Process(target=_open_and_count, args=arguments) for _ in range(2)]
    for process in started:
        process.start()
    results = [queue.get(timeout=120) for _ in started]
    for process in started:
        process.join()
    assert sorted(count for count, _ in results) == [0, 1]
    assert len({fingerprint for _, fingerprint in results}) == 1


def test_a_full_disk(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = scored_recipe(model, tmp_path, "length")
    data = prepared(config)

    def refuse(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ds_train.curriculum.score_files.replace_text", refuse)
    with pytest.raises(DataError, match=r"cache_dir = .*: No space left on device; free some"):
        open_scores(config, data, silent)
    monkeypatch.undo()
    assert open_scores(config, data, silent).values.tolist() == data.train.lengths.tolist()


def test_the_facts_beside_the_values(model: Path, tmp_path: Path) -> None:
    ask(scored_recipe(model, tmp_path, "length"))
    (path,) = tmp_path.rglob("difficulty/*.json")
    facts = json.loads(path.read_text())
    assert facts["metric"] == "length" and facts["num_samples"] == 60
    assert facts["version"] == scores.SCORES_VERSION and len(facts["blake2b"]) == 32
