"""Messages about demonstrations, calibration and normalisation, word for word."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds_train.cli import main

RECIPE = """\
output_dir: run
model: {name_or_path: org/model}
data: {train: [{path: org/data}]}
train: {max_steps: 10}
cluster: {processes_per_node: 2}
"""


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "demonstrations: bm52",
            'evaluate.demonstrations = "bm52": must be one of random, balanced, bm25, knn, fixed '
            "or fixed:3,17,42. Did you mean bm25? (my.yaml, line 6)",
        ),
        (
            "demonstrations: 'fixed:1,1'",
            'evaluate.demonstrations = "fixed:1,1": names a document twice; name each once '
            "(my.yaml, line 6).",
        ),
        (
            "calibration: [contextual, bach]",
            "evaluate.calibration = ['contextual', 'bach']: must be one of none, contextual, "
            "batch, pmi. Did you mean batch? (my.yaml, line 6)",
        ),
        (
            "normalise: tokns",
            'evaluate.normalise = "tokns": must be one of none, tokens, chars, bytes, pmi. '
            "Did you mean tokens? (my.yaml, line 6)",
        ),
        (
            "draw: harness",
            'evaluate.draw = "harness": must be one of document, lm_eval (my.yaml, line 6).',
        ),
    ],
)
def test_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, message: str
) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(RECIPE + f"evaluate: {{tasks: [a], {setting}}}\n")
    assert main(["validate", str(path)]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_two_ways_to_draw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(RECIPE + "evaluate: {tasks: [a], demonstrations: knn, draw: lm_eval}\n")
    assert main(["validate", str(path)]) == 2
    message = "demonstrations knn can't be chosen with draw lm_eval, which leaves the choice to"
    assert message in capsys.readouterr().err


def test_all_faults_of_the_command_line_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval")
    options = "--demonstrations nearest --draw lm-eval --calibration pim --normalise word,tokens"
    assert main(["evaluate", "model", "--tasks", "a", *options.split()]) == 2
    assert capsys.readouterr().err == (
        "error: 4 faults:\n"
        "  --demonstrations nearest: must be one of random, balanced, bm25, knn, fixed or "
        "fixed:3,17,42. Did you mean knn?\n"
        "  --draw lm-eval: must be one of document, lm_eval. Did you mean lm_eval?\n"
        "  --calibration pim: must be one of none, contextual, batch, pmi. Did you mean pmi?\n"
        "  --normalise word,tokens: must be one of none, tokens, chars, bytes, pmi\n"
    )


@pytest.mark.parametrize("option", ["--demonstrations bm25", "--calibration batch", "--draw x"])
def test_options_of_tasks_without_tasks(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "model", *option.split()]) == 2
    name = option.split()[0]
    assert f"error: {name}: is for evaluation tasks; name them with --tasks a,b." in (
        capsys.readouterr().err
    )
