"""`ds-train fewshot`: arms x k x seeds, the distribution over seeds, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from compare.conftest import Compare
from ds_train.compare import check, kshot_report, run
from ds_train.compare.arms import RunSpec
from ds_train.compare.kshot import parse_seeds, parse_shots
from ds_train.config.compare import CompareConfig
from ds_train.config.run import RunConfig
from ds_train.data.prepare import prepare_data
from ds_train.errors import ConfigError

FAKE_MEASURE = Path(__file__).with_name("fake_measure.py")
VALUES = {
    f"{arm}-k{k}/seed-{seed}": value - 0.25 - 0.1 * seed  # on dev; fake_measure.py adds 0.25
    for arm, k, value in [
        ("plain", 2, 3.0),
        ("high", 2, 2.8),
        ("plain", 4, 2.0),
        ("high", 4, 1.0),
    ]
    for seed in range(3)
}


@pytest.fixture
def fewshot(compare: Compare, monkeypatch: pytest.MonkeyPatch) -> Compare:
    """`ds-train fewshot my.yaml ...` on twelve examples of each of two classes."""
    rows = [{"text": f"word {n}", "label": ("no", "yes")[n % 2]} for n in range(24)]
    Path("labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = yaml.safe_load(Path("my.yaml").read_text())
    source = {"path": "labelled.jsonl", "format": "classification"}
    recipe["data"]["train"] = [source]
    recipe["data"]["validation"] = {"sources": [{**source, "name": "held_out"}]}
    recipe["train"] |= {"global_batch_size": 4, "per_device_train_batch_size": 4}
    Path("my.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))

    def measured(folder: Path, output: Path) -> list[str]:
        return [sys.executable, "-c", f"open({str(output)!r}, 'w').write('{{\"loss\": 5.5}}')"]

    def measure(spec: RunSpec, compare: CompareConfig) -> list[str]:
        return [sys.executable, str(FAKE_MEASURE), str(spec.paths.root)]

    monkeypatch.setattr(kshot_report, "base_command", measured)
    monkeypatch.setattr(run, "measure_command", measure)
    return compare


def test_every_arm_at_every_k(fewshot: Compare) -> None:
    code, out, err = fewshot("--k", "4,2", "--seeds", "3", values=VALUES, name="fewshot")
    assert (code, err) == (0, "")
    assert "compare: 4 arms x 3 seeds = 12 runs" in out
    table = Path("out/fewshot.md").read_text()
    assert table in out
    assert table.startswith(
        "**loss** (lower is better)\n\nBefore training: 5.5000\n\n"
        "| k | arm | seeds | mean (sd) | min | median | max | IQR | "
        "difference to plain, mean (sd) | seeds better | verdict |\n"
    )
    assert (
        "| 2 | high | 3 | 2.7000 (0.1000) | 2.6000 | 2.7000 | 2.8000 | 0.1000 | "
        "-0.2000 (0.0000) | 3 of 3 | better |\n"
    ) in table
    assert "| 4 | plain | 3 | 1.9000 (0.1000) | 1.8000 | 1.9000 | 2.0000 | 0.1000 |  |  " in table
    numbers = json.loads(Path("out/fewshot.json").read_text())
    assert [(one["arm"], one["k"]) for one in numbers["rungs"]] == [
        ("plain", 2),
        ("high", 2),
        ("plain", 4),
        ("high", 4),
    ]
    assert numbers["before"] == {"loss": 5.5}
    assert Path("out/fewshot.png").is_file()


def test_a_run_is_its_arm_at_its_k(fewshot: Compare) -> None:
    fewshot("--k", "2,4", "--seeds", "3", values=VALUES, name="fewshot")
    recipe = yaml.safe_load(Path("out/high-k4/seed-2/recipe.launch.yaml").read_text())
    assert recipe["adapter"]["r"] == 16
    assert recipe["fewshot"]["subset"]["k"] == 4
    assert recipe["train"]["seed"] == 2


def test_an_interrupted_grid_goes_on_with_each_seeds_own_examples(
    fewshot: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is there is compared with the data of its own seed, not of the first one."""
    arguments = ["--k", "2", "--seeds", "2"]
    values = {name: value for name, value in VALUES.items() if "-k2/" in name}
    code, _, _ = fewshot(*arguments, values=values, name="fewshot")
    assert code == 0
    seen = {}

    def check_same_inputs(config: RunConfig, base: str, data: str, difficulty: str) -> None:
        seen[config.train.seed] = data
        assert data == prepare_data(config, say=lambda text: None).fingerprint

    monkeypatch.setattr(check, "check_same_inputs", check_same_inputs)
    code, out, err = fewshot(*arguments, name="fewshot")
    assert (code, err) == (0, "")
    assert "4 runs, 4 of them finished" in out
    assert seen.keys() == {0, 1} and seen[0] != seen[1]


def test_without_arms_the_recipe_itself_is_taken(fewshot: Compare) -> None:
    values = {f"lora-k2/seed-{seed}": 1.0 + seed for seed in (13, 21)}
    arguments = ["--k", "2", "--seeds", "13,21", "compare=null"]
    code, out, _ = fewshot(*arguments, values=values, name="fewshot")
    assert code == 0
    assert "compare: 1 arm x 2 seeds = 2 runs" in out
    assert Path("out/lora-k2/seed-21/recipe.launch.yaml").is_file()
    # without a compare section, whole answers are what is measured
    assert Path("out/fewshot.md").read_text().startswith("**exact_match** (higher is better)")


def test_bad_numbers() -> None:
    assert parse_shots("4,16") == [4, 16]
    assert parse_seeds("3") == [0, 1, 2]
    assert parse_seeds("13,21") == [13, 21]
    for text in ("0", "4,x", "", "4,4", "-1"):
        with pytest.raises(
            ConfigError, match=f"--k {text}: must be different whole numbers from 1"
        ):
            parse_shots(text)
    with pytest.raises(ConfigError, match="--seeds 0: must be different whole numbers from 1"):
        parse_seeds("0")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["compare.arms={few: {fewshot.subset.k: 3}}"],
            "compare.arms.few sets fewshot.subset.k; ds-train fewshot crosses every arm with",
        ),
        (
            ["fewshot.subset={k: 2, seed: 7}"],
            "fewshot.subset.seed = 7: every run would train on the same examples",
        ),
        (["--k", "13"], "13"),
    ],
)
def test_refused(fewshot: Compare, overrides: list[str], message: str) -> None:
    code, _, err = fewshot("--seeds", "2", *overrides, values={}, name="fewshot")
    assert code == 2
    assert message in err
    assert "Traceback" not in err
