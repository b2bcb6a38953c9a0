"""Messages of `ds-train compare` about bad input, word for word; nothing is started then."""

from __future__ import annotations

from pathlib import Path

import pytest

from compare.conftest import Compare
from ds_train.cli import main

METRICS = (
    "is not measured; there are loss, perplexity, token_accuracy, bits_per_byte, rank_accuracy, "
    "exact_match, rank_accuracy_none, rank_accuracy_tokens, rank_accuracy_chars, "
    "rank_accuracy_bytes, and of one source "
    "sources.NAME.loss and so on (sources.mean.loss: the mean over all sources)"
)

# typed after the recipe -> the message
CASES = [
    (
        "compare.baseline=plian",
        'compare.baseline = "plian": is not one of the (other) arms plain, high. Did you mean '
        "plain? (on the command line)",
    ),
    (
        "compare.metrics=[loss,exact_mach]",
        f"compare.metrics = ['loss', 'exact_mach']: 'exact_mach' {METRICS}. Did you mean "
        "exact_match? (on the command line)",
    ),
    (
        "compare.metrics=[sources.L9.exact_match]",
        'compare.metrics[0] = "sources.L9.exact_match": the validation data has no source "L9"; it '
        "has held_out.",
    ),
    (
        "data.validation=null",
        "compare.metrics = ['loss']: is measured on held-out data, and the recipe holds nothing "
        "out; set data.validation.fraction or data.validation.sources.",
    ),
    (
        "compare.arms={}",
        "compare.arms: is empty; name at least one arm, e.g. {lora: {adapter.method: lora}} (on "
        "the command line).",
    ),
    (
        "compare.arms={a/b: {}}",
        'compare.arms: the name "a/b" becomes a folder; use letters, digits, and _ . + - inside '
        "(on the command line).",
    ),
    (
        "compare.arms.high=16",
        "compare.arms.high = 16: must be a section of `key: value` lines (on the command line).",
    ),
    (
        "compare.arms={a: {}, b: {adapter.rank: 4}}",
        "compare.arms.b: adapter.rank: no such setting; here it is adapter.r.",
    ),
    (
        "compare.arms={a: {}, b: {adapter.r: many}}",
        'compare.arms.b: adapter.r = "many": is not a number; write it like 4096, 4k, 2^12 or '
        "1.5B.",
    ),
    (
        "compare.arms={a: {}, b: {data.train.0.path: none.jsonl}}",
        'compare.arms.b: data.train[0].path = "none.jsonl": no such file or folder in DIR. Did you '
        "mean rows.jsonl?",
    ),
    (
        "compare.arms={a: {}, b: {train.max_tokens: 100}}",
        "compare.arms.b: train: give exactly one of max_steps, num_train_epochs, max_tokens "
        "(given: max_steps, max_tokens) (my.yaml, line 17).",
    ),
    (
        "compare.arms={a: {train.seed: 3}}",
        "compare.arms: arm a sets train.seed, which no arm can: compare.seeds says it for all arms "
        "(on the command line).",
    ),
    (
        "compare.arms={a: {equal_updates_to: b}}",
        "compare.arms: arm a: equal_updates_to = b is not one of the (other) arms a (on the "
        "command line).",
    ),
    (
        "compare.arms={a: {}, b: {equal_updates_to: a}, c: {equal_updates_to: b}}",
        "compare.arms: arm c: equal_updates_to = b, which itself has equal_updates_to; name a (on "
        "the command line).",
    ),
    (
        "compare.seeds=[]",
        "compare.seeds = []: is empty; name at least one seed, e.g. [0, 1, 2] (on the command "
        "line).",
    ),
    (
        "compare.seeds=[1,2,1]",
        "compare.seeds = [1, 2, 1]: has 1 twice; a run is made once (on the command line).",
    ),
    (
        "compare.learning_rates=[1e-3,0]",
        "compare.learning_rates = [0.001, 0]: must be a list of numbers over 0, e.g. [1e-4, 3e-4, "
        "1e-3] (on the command line).",
    ),
    (
        "compare.parallel=0",
        "compare.parallel = 0: must be at least 1 (on the command line).",
    ),
    (
        "compare=null",
        "my.yaml: has no section compare, which names the arms, e.g. compare: {arms: {low: "
        "{adapter.r: 4}, high: {adapter.r: 64}}}.",
    ),
]


@pytest.mark.parametrize(("typed", "message"), CASES, ids=[case[0] for case in CASES])
def test_message(compare: Compare, tmp_path: Path, typed: str, message: str) -> None:
    code, _, err = compare(typed, values={})
    assert code == 2
    assert err.replace(str(tmp_path.resolve()), "DIR") == f"error: {message}\n"
    assert not list(Path("out").rglob("starts"))


def test_faults_of_several_arms_come_at_once_and_shared_ones_once(compare: Compare) -> None:
    arms = "compare.arms={a: {adapter.rank: 4}, b: {adapter.r: many}}"
    _, _, err = compare(arms, "data.train.0.path=none.jsonl")
    assert err.splitlines()[0] == "error: 3 faults:"
    assert "  compare.arms.a: adapter.rank: no such setting" in err
    assert '  compare.arms.b: adapter.r = "many"' in err
    assert err.count("none.jsonl") == 1
    assert '  data.train[0].path = "none.jsonl": no such file or folder' in err


def test_the_fault_of_a_model_names_its_arm(compare: Compare, tmp_path: Path) -> None:
    Path("broken").mkdir()
    Path("broken/config.json").write_text("{")
    Path("broken/model.safetensors").write_text("x")
    code, _, err = compare("compare.arms={a: {}, b: {model.name_or_path: ./broken}}", values={})
    assert code == 2
    assert err.startswith("error: compare.arms.b: broken/config.json: is not valid JSON")


def test_no_recipe(compare: Compare, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["compare"]) == 2
    assert capfd.readouterr().err == (
        "error: ds-train compare: name a recipe, or --digits FOLDER; see --help.\n"
    )
    assert main(["compare", "--digits", "folder", "my.yaml"]) == 2
    assert capfd.readouterr().err == ('error: --digits brings its own recipe; remove "my.yaml".\n')


def test_train_ignores_the_section_but_checks_it(compare: Compare) -> None:
    assert main(["validate", "my.yaml"]) == 0
    assert main(["validate", "my.yaml", "compare.baseline=x"]) == 2
